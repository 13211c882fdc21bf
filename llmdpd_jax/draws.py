"""Random draws from one key, or from a batch of keys that each serve their own part of what is drawn.

With a key for each group of a batch, what a group draws depends on nothing but its own key: the batch may be divided
among any number of devices and stays the same, number by number. Keys are typed (`jax.random.key`); old ones, uint32
[..., 2], are taken for what they stand for.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmdpd_jax.types import Array


def fold_each(key: Array, numbers: Array) -> Array:
    """A key for each of the numbers, int [G] -> [G]."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def split(key: Array, count: int) -> Array:
    """`count` keys of each key: [...] -> [count, ...]."""
    key = _typed(key)
    return jnp.moveaxis(_each(lambda one, _: jax.random.split(one, count), key, key.shape), -1, 0)


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers of the given shape, whose first axes are those of the keys."""
    return _each(jax.random.normal, key, shape)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Numbers in [0, 1) of the given shape, whose first axes are those of the keys."""
    return _each(jax.random.uniform, key, shape)


def bernoulli(key: Array, probability: float | Array, shape: tuple[int, ...]) -> Array:
    """Flags of the given shape, whose first axes are those of the keys, True with this probability []."""
    return _each(lambda one, rest: jax.random.bernoulli(one, probability, rest), key, shape)


def integers(key: Array, shape: tuple[int, ...], least: int, beyond: int) -> Array:
    """Whole numbers from `least` up to and without `beyond`; the first axes of the shape are those of the keys."""
    return least + below(bits(key, shape), beyond - least)


def bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Random bits, uint32 in double precision, too, of the given shape, whose first axes are those of the keys."""
    return _each(lambda one, rest: jax.random.bits(one, rest, jnp.uint32), key, shape)


def below(bits: Array, count: int | Array) -> Array:
    """Random bits, uint32 [...], as whole numbers from 0 up to and without `count`, int [...]: int32.

    None is likelier than another by more than a share of count / 2^32. `jax.random.randint` is more even still, from
    three times the random bits, which take most of the time.
    """
    return jax.lax.rem(bits, jnp.broadcast_to(jnp.asarray(count, jnp.uint32), bits.shape)).astype(jnp.int32)


def _each(draw: Callable[[Array, tuple[int, ...]], Array], key: Array, shape: tuple[int, ...]) -> Array:
    """`draw(key, shape)` for every key."""
    key = _typed(key)
    if key.ndim == 0:
        return draw(key, shape)
    if shape[: key.ndim] != key.shape:
        raise ValueError(f"draws of shape {shape} do not start with the axes {key.shape} of their keys")
    return jax.vmap(lambda one: _each(draw, one, shape[1:]))(key)


def _typed(key: Array) -> Array:
    """The key itself, or the typed one of an old key, such as Brax hands out."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
