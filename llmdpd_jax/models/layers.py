"""Building blocks shared by the networks."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.dense import Dense, DenseGeneral, product
from llmdpd_jax.types import Array


@jax.custom_jvp
def mish(x: Array) -> Array:
    """Mish, `x tanh(softplus(x))` (Misra 2020), in a rational form with one exponential.

    On a CPU that is several times cheaper. Its slope needs no second exponential, which automatic differentiation would
    not see.
    """
    return x * (1.0 - 2.0 * _mish_gate(x))


def _mish_gate(x: Array) -> Array:
    """`r = 1 / ((e^x + 1)² + 1)`; Mish is `x (1 - 2 r)`."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    return 1.0 / (e * (e + 2.0) + 2.0)


@mish.defjvp
def _mish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    r = _mish_gate(x)
    open_share = 1.0 - 2.0 * r
    # e^x (e^x + 1) r² in terms of r alone.
    rest = r - r * r
    return x * open_share, (open_share + 4.0 * x * (rest - r * jnp.sqrt(rest))) * dx


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": nn.relu, "silu": nn.silu, "gelu": nn.gelu, "mish": mish}


def activation(name: str) -> Callable[[Array], Array]:
    """The named activation.

    Raises:
      UserError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"activation: {name!r} is unknown; choose one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def step_embedding(k: Array, size: int) -> Array:
    """Sinusoidal embedding of a diffusion step (Vaswani et al. 2017): [...] -> [..., size]."""
    # NumPy's: where the step is known, too, compilers can work out the embedding, and what a layer makes of it.
    frequencies = np.exp(-np.log(10_000.0) * np.arange(size // 2) / (size // 2 - 1)).astype(np.float32)
    angles = k[..., None] * np.tile(frequencies, 2)
    # Not concatenated: XLA would split a layer's product with the whole into two.
    return jnp.where(np.arange(size) < size // 2, jnp.sin(angles), jnp.cos(angles))


class MLP(nn.Module):
    """Dense layers with an activation after each; optional layer norm before it. [..., D] -> [..., width]."""

    width: int
    depth: int
    activation: str = "relu"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(self.depth):
            x = Dense(self.width)(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = activation(self.activation)(x)
        return x


class AttentionPool(nn.Module):
    """Learned queries attend to tokens: [..., L, D], mask [..., L] -> [..., width].

    Each query has its own scores and reads its own slice of the values. With every token masked out the result is the
    mean of the values, which callers replace by a null token.
    """

    width: int
    queries: int = 4

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        # No bias: what is added to all scores of a query changes no weight.
        scores = Dense(self.queries, use_bias=False, name="scores")(tokens)
        scores = jnp.where(mask[..., None], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-2)
        values = DenseGeneral((self.queries, self.width // self.queries), name="values")(tokens)
        pooled = jnp.einsum("...lq,...lqd->...qd", weights, values)
        return Dense(self.width, name="out")(pooled.reshape(*pooled.shape[:-2], -1))


def distance_slopes(key: Array, shape: tuple[int, int]) -> Array:
    """Initial attention biases [heads, 2 * reach + 1] by distance -reach..reach: each head looks farther than the last.

    The slopes of ALiBi (Press et al. 2022), on both sides.
    """
    del key
    heads, distances = shape
    away = jnp.abs(jnp.arange(distances) - distances // 2)
    return -away / 2.0 ** jnp.arange(heads)[:, None]


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP: [..., L, D], mask [..., L] -> [..., L, D].

    With a `reach`, attention has a learned bias for each distance from -reach to reach, farther tokens counting as the
    farthest (T5, Raffel et al. 2020); without, tokens are a set.
    """

    heads: int = 4
    reach: int = 0

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        bias = None
        if self.reach:
            biases = self.param("distance_bias", distance_slopes, (self.heads, 2 * self.reach + 1))
            place = jnp.arange(tokens.shape[-2])
            distance = jnp.clip(place - place[:, None], -self.reach, self.reach)  # [L, L], key minus query
            bias = jnp.take(biases, distance + self.reach, axis=1)
        attend = nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            attention_fn=partial(nn.dot_product_attention, bias=bias),
            qkv_dot_general=product,
            out_dot_general=product,
            name="attention",
        )
        tokens = tokens + attend(nn.LayerNorm()(tokens), mask=mask[..., None, None, :])
        hidden = nn.relu(Dense(2 * tokens.shape[-1])(nn.LayerNorm()(tokens)))
        return tokens + Dense(tokens.shape[-1])(hidden)
