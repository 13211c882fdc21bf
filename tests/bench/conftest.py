"""Benchmarks are tried here without being timed: what they run need not be fast."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_quickly(optimised, monkeypatch):
    """The same for the processes that measure."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
