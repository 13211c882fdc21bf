"""An LLM for tests of exports."""

import jax
import pytest
from tiny_llama import CONFIG, tiny_tensors, write_folder


@pytest.fixture(scope="module")  # no longer: the weights that other tests look for are not in this cache
def llm(tmp_path_factory):
    """The folder of a tiny LLM; its embeddings are cached beside it."""
    folder = tmp_path_factory.mktemp("llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMDPD_CACHE", str(folder / "cache"))
        yield write_folder(folder / "llm", tiny_tensors(), CONFIG)


@pytest.fixture(scope="module")
def quickly():
    """Compiles without most optimisations: every policy here has programs of its own."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
