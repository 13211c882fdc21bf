"""What decoders and bidirectional encoders share: their config, masked attention, and dense layers with adapters."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from llmdpd_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a language model; hashable, so it can be a static argument of `jax.jit`."""

    vocab_size: int
    width: int  # D, of the hidden states
    num_layers: int
    num_heads: int
    mlp_width: int
    norm_eps: float
    max_length: int  # longest sequence the model was trained for, in tokens
    dtype: str = "float32"  # of weights and activations
    lora_rank: int = 0  # r of the adapters on query and value projections; 0: there are none
    lora_alpha: float = 16.0  # what the adapters add is scaled by lora_alpha / lora_rank
    remat: bool = False  # compute each block again in the backward pass rather than keep what is inside it

    def truncate(self, layer: int) -> "ModelConfig":
        """The same model cut after block `layer` (1 = first).

        Raises: UserError if the model has no such block.
        """
        if not 1 <= layer <= self.num_layers:
            raise UserError(
                f"text.layer, or --layer: {layer} is not a layer of this model, which has {self.num_layers} blocks; "
                f"choose 1 to {self.num_layers}"
            )
        return replace(self, num_layers=layer)


class Dense(nn.Module):
    """x [..., I] -> x W (+ b) [..., O], plus (alpha / r) (x A) B if the config has adapters and the layer `adapted`.

    The adapters are LoRA's (Hu et al. 2021, arXiv 2106.09685): A [I, r] starts normal with deviation I^-0.5 and
    B [r, O] zero, so that at first nothing changes. They are the Flax collection "lora", float32 whatever the weights
    are, and W + A B is never built.
    """

    config: ModelConfig
    features: int
    use_bias: bool = False
    adapted: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, inputs = self.config, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(c.width**-0.5), (inputs, self.features), c.dtype)
        y = x @ kernel
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), c.dtype)
        if self.adapted and c.lora_rank:
            a = self._adapter("a", nn.initializers.normal(inputs**-0.5), (inputs, c.lora_rank))
            b = self._adapter("b", nn.initializers.zeros, (c.lora_rank, self.features))
            y += (c.lora_alpha / c.lora_rank) * ((x @ a) @ b)
        return y

    def _adapter(self, name: str, init: Callable, shape: tuple[int, int]) -> jax.Array:
        made = self.variable("lora", name, lambda: init(self.make_rng("lora"), shape, jnp.float32))
        return made.value.astype(self.config.dtype)


class Packing(struct.PyTreeNode):
    """Which places of padded texts [B, L] are computed: all but attention works on these alone, as [G, N].

    The rows are G groups of B/G each, one group for each device, and places count from the start of a group.
    """

    kept: jax.Array  # [G, N], in a group's B/G * L places; some may occur more than once
    sources: jax.Array  # [G, B/G * L], where among the N kept ones a place is found; 0 for those that are not kept

    @classmethod
    def of(cls, kept: jax.Array, rows: int, length: int, before: int = 0) -> "Packing":
        """Keeps places `kept` [G, N] of `rows` texts of `length`, and after them all of `before` more before a text."""
        rows //= len(kept)
        whole = before + length
        prefix = (whole * jnp.arange(rows)[:, None] + jnp.arange(before)).ravel()
        kept = kept + before * (kept // length + 1)
        kept = jnp.concatenate([kept, jnp.broadcast_to(prefix, (len(kept), prefix.size))], axis=1)
        order = jnp.arange(kept.shape[1])
        return cls(kept, jax.vmap(lambda one: jnp.zeros(rows * whole, jnp.int32).at[one].set(order))(kept))

    def pack(self, x: jax.Array) -> jax.Array:
        """Padded [B, L, ...] -> kept [G, N, ...]."""
        return _take(x.reshape(len(self.kept), -1, *x.shape[2:]), self.kept)

    def unpack(self, x: jax.Array, length: int) -> jax.Array:
        """Kept [G, N, ...] -> padded [B, L, ...], with anything at places that are not kept."""
        return _take(x, self.sources).reshape(-1, length, *x.shape[2:])


def _take(x: jax.Array, places: jax.Array) -> jax.Array:
    """Entries [G, M, ...] of x [G, N, ...] at places [G, M]."""
    return jax.vmap(lambda one, at: one.at[at].get(mode="promise_in_bounds"))(x, places)


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scale: float,
    packing: Packing | None = None,
) -> jax.Array:
    """Softmax attention [B, L, H, d] of queries [B, L, H, d] over keys and values [B, M, K, d], H a multiple of K.

    Query heads h * H/K to (h + 1) * H/K - 1 share key head h (grouped queries, arXiv 2305.13245). `mask`
    [B or 1, L, M] says which keys (last axis) a query sees, at least one. Weights are computed in float32 whatever the
    dtype. With a packing all but the mask is packed.
    """
    if packing is not None:
        queries, keys, values = (packing.unpack(x, mask.shape[-1]) for x in (queries, keys, values))
    batch, length, heads, width = queries.shape
    groups = keys.shape[2]
    # The queries of a group are rows of one matrix: on CPUs the fastest of the forms measured.
    rows = queries.reshape(batch, length, groups, -1, width).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, groups, -1, width)
    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    scores = jnp.einsum("bgrd,bgkd->bgrk", rows, keys, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(batch, groups, -1, *mask.shape[1:])
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype).reshape(batch, groups, -1, mask.shape[-1])
    attended = jnp.einsum("bgrk,bgkd->bgrd", weights, values)
    attended = attended.reshape(batch, groups, heads // groups, length, width).transpose(0, 3, 1, 2, 4)
    attended = attended.reshape(batch, length, heads, width)
    return attended if packing is None else packing.pack(attended)


def put_before(prefix: jax.Array, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """A soft prompt [P, D] before embedded tokens [B, L, D], and the mask [B, P + L] that goes with it.

    Soft prompts are vectors learned in the place of token embeddings (Lester et al. 2021, arXiv 2104.08691).
    """
    batch, prompt_length = len(x), len(prefix)
    x = jnp.concatenate([jnp.broadcast_to(prefix.astype(x.dtype), (batch, *prefix.shape)), x], axis=1)
    if mask is not None:
        mask = jnp.concatenate([jnp.ones((batch, prompt_length), bool), mask], axis=1)
    return x, mask


def token_positions(length: int, mask: jax.Array | None) -> jax.Array:
    """Positions [B or 1, L], counted from the first real token; padded places have that of a real one."""
    if mask is None:
        return jnp.arange(length)[None]
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def visible(seen: jax.Array, mask: jax.Array | None, first: jax.Array | int = 0) -> jax.Array:
    """Which keys a query sees [B or 1, L, M]: of those `seen` [B or 1, L, M] the real ones, and in any case itself.

    Seeing itself keeps the states of padded places finite; no real token sees them. The first query is key `first`.
    """
    if mask is None:
        return seen
    queries, keys = (jnp.arange(n) for n in seen.shape[1:])
    return (seen & mask[:, None, :]) | (keys == (first + queries)[:, None])
