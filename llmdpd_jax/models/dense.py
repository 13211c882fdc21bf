"""Flax's dense layers with a gradient that is fast on CPUs, too."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmdpd_jax.types import Array


def product(x: Array, kernel: Array, dimension_numbers, precision=None, preferred_element_type=None) -> Array:
    """`jax.lax.dot_general` of the last axes of x [..., I] and the first ones of a kernel [I, ...], for Flax's layers.

    On a CPU the gradient of the kernel is computed from a transposed copy of x: XLA's own form of it sums over the rows
    of two arrays, for which its kernels are slow, most of all where outputs are few.
    """
    options = dimension_numbers, precision, preferred_element_type
    return (_product if jax.default_backend() == "cpu" else jax.lax.dot_general)(x, kernel, *options)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(x: Array, kernel: Array, dimension_numbers, precision, preferred_element_type) -> Array:
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


def _forward(x: Array, kernel: Array, *options) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel, *options), (x, kernel)


def _backward(
    dimension_numbers, precision, preferred_element_type, seen: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    del preferred_element_type
    x, kernel = seen
    summed = len(dimension_numbers[0][0])
    inputs = math.prod(kernel.shape[:summed])
    rows, slopes = x.reshape(-1, inputs), slope.reshape(-1, math.prod(kernel.shape[summed:]))
    of_x = jnp.matmul(slopes, kernel.reshape(inputs, -1).T, precision=precision)
    columns = jax.lax.optimization_barrier(rows.T)  # else XLA would make its own form of it again
    of_kernel = jnp.matmul(columns, slopes, precision=precision)
    return of_x.reshape(x.shape).astype(x.dtype), of_kernel.reshape(kernel.shape).astype(kernel.dtype)


_product.defvjp(_forward, _backward)

Dense = partial(nn.Dense, dot_general=product)
DenseGeneral = partial(nn.DenseGeneral, dot_general=product)
