"""Flax's dense layers with a gradient that is fast on CPUs, too."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

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


def _forward(x: CustomVJPPrimal, kernel: CustomVJPPrimal, *options) -> tuple[Array, tuple[Array | None, Array | None]]:
    # Each factor is what the other's gradient needs: no gradient is computed that nobody asks for.
    needed = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    return jax.lax.dot_general(x.value, kernel.value, *options), needed


def _backward(
    dimension_numbers,
    precision,
    preferred_element_type,
    needed: tuple[Array | None, Array | None],
    slope: Array | SymbolicZero,
) -> tuple[Array | None, Array | None]:
    del preferred_element_type
    if isinstance(slope, SymbolicZero):
        return None, None
    x, kernel = needed
    summed, of_x, of_kernel = len(dimension_numbers[0][0]), None, None
    if kernel is not None:
        inputs, outputs = kernel.shape[:summed], kernel.shape[summed:]
        slopes = slope.reshape(-1, math.prod(outputs))
        of_x = jnp.matmul(slopes, kernel.reshape(-1, math.prod(outputs)).T, precision=precision)
        of_x = of_x.reshape(*slope.shape[: slope.ndim - len(outputs)], *inputs).astype(kernel.dtype)
    if x is not None:
        rows, inputs, outputs = x.shape[:-summed], x.shape[-summed:], slope.shape[x.ndim - summed :]
        columns = x.reshape(math.prod(rows), math.prod(inputs)).T
        columns = jax.lax.optimization_barrier(columns)  # else XLA would make its own form of it again
        of_kernel = jnp.matmul(columns, slope.reshape(math.prod(rows), -1), precision=precision)
        of_kernel = of_kernel.reshape(*inputs, *outputs).astype(x.dtype)
    return of_x, of_kernel


_product.defvjp(_forward, _backward, symbolic_zeros=True)

Dense = partial(nn.Dense, dot_general=product)
DenseGeneral = partial(nn.DenseGeneral, dot_general=product)
