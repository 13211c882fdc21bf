"""The machine's own speed at one large matrix product, which no network can exceed."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def matmul_size(platform: str) -> int:
    """Rows and columns large enough for the platform to show its best."""
    return 2048 if platform == "cpu" else 8192


def flops_per_second(product: Callable[[], object], size: int) -> float:
    """FLOP/s of a call that multiplies two square matrices and waits for the result."""
    start = time.perf_counter()
    product()
    return 2 * size**3 / (time.perf_counter() - start)


def jax_matmul() -> float:
    """FLOP/s of JAX in float32."""
    size = matmul_size(jax.devices()[0].platform)
    matrix = jnp.ones((size, size), jnp.float32)
    with jax.default_matmul_precision("highest"):
        product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    return flops_per_second(lambda: product(matrix, matrix).block_until_ready(), size)
