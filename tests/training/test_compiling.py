"""What XLA is told about how to compile an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.training.step import compiler_options

X = np.linspace(-1.0, 1.0, 48, dtype=np.float32).reshape(6, 8)


def loss(x):
    return jnp.sum(jnp.tanh(x @ x.T) ** 2)


@pytest.mark.parametrize("run_once", [False, True])
def test_the_compiler_knows_the_options_and_computes_the_same(run_once):
    """An option that a newer XLA no longer knows is an error of the call."""
    options = compiler_options(run_once)
    if not options:
        pytest.skip("no CPU: compiled as XLA would")
    compiled = jax.jit(jax.value_and_grad(loss), compiler_options=options)(X)
    for mine, plain in zip(compiled, jax.value_and_grad(loss)(X), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_compile_as_xla_would(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert compiler_options() == compiler_options(run_once=True) == {}
