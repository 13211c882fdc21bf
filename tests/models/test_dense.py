"""Dense layers' own gradient is that of JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.models import dense

LAYERS = {
    "dense": (dense.Dense, nn.Dense, (5,)),
    "several outputs": (dense.DenseGeneral, nn.DenseGeneral, ((2, 3),)),
    "several inputs": (dense.DenseGeneral, nn.DenseGeneral, (3, (-2, -1))),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_output_and_gradient_are_those_of_flax(name, dtype):
    ours, flax, arguments = LAYERS[name]
    ours, flax = ours(*arguments, dtype=dtype), flax(*arguments, dtype=dtype)
    x = jax.random.normal(jax.random.key(0), (7, 6, 4))
    params = flax.init(jax.random.key(1), x)

    def loss(layer, params, x):
        return jnp.mean(jnp.sin(layer.apply(params, x).astype(jnp.float32)))

    results = [jax.value_and_grad(loss, argnums=(1, 2))(layer, params, x) for layer in (ours, flax)]
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    jax.tree.map(lambda mine, theirs: np.testing.assert_allclose(mine, theirs, atol=tolerance), *results)


def test_gradient_by_hand():
    x, kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[5.0], [6.0]])
    weights = jnp.array([[10.0], [1.0]])
    of_x, of_kernel = jax.grad(
        lambda x, kernel: jnp.sum(weights * dense.product(x, kernel, (((1,), (0,)), ((), ())))), argnums=(0, 1)
    )(x, kernel)
    np.testing.assert_allclose(of_x, [[50.0, 60.0], [5.0, 6.0]])
    np.testing.assert_allclose(of_kernel, [[13.0], [24.0]])


def test_gradient_of_a_gradient_and_over_a_batch_of_kernels():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 5))
    plain = jax.lax.dot_general

    def slope(product, kernel):
        def output(x):
            return jnp.sum(jnp.tanh(product(x, kernel, (((1,), (0,)), ((), ())))))

        return jnp.sum(jax.grad(output)(x) ** 2)

    mine, theirs = (jax.vmap(jax.grad(lambda k, p=product: slope(p, k)))(kernels) for product in (dense.product, plain))
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
