"""Model files for the tests of the text encoder."""

from pathlib import Path

import pytest
from tiny_llama import tiny_tensors, write_folder

from llmdpd_jax.models.llm.weights import fetch_command, fetch_weights, weights_path


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"), tiny_tensors())


@pytest.fixture
def private_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for weights and hashes."""
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fetched(name: str) -> Path:
    if not weights_path(name).exists():
        pytest.skip(f"the weights of {name} are not there: run `{fetch_command(name)}`")
    return fetch_weights(name)


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    return fetched("smollm2")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    return fetched("minilm")


@pytest.fixture(scope="session")
def gemma_file() -> Path:
    return fetched("gemma3-270m")
