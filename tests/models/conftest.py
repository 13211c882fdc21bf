"""Model files for the tests of the text encoder."""

from pathlib import Path

import pytest
from tiny_llama import tiny_tensors, write_folder

from llmdpd_jax.models.llm.weights import fetch_weights, weights_file


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"), tiny_tensors())


@pytest.fixture
def private_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for weights and hashes."""
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    if not weights_file().is_file():
        pytest.skip("SmolLM2 weights are not there: run `llmdpd embed --fetch`")
    return fetch_weights()
