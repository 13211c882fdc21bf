"""Decoder LLMs in Flax Linen, read for their hidden states rather than for their next-token scores.

One module for several families, which agree in rotary positions, grouped-query attention and gated MLPs (Touvron et al.
2023, arXiv 2302.13971) and differ in norms, biases and windows: see `VARIANTS`. All blocks are one scanned module, so
compile time does not grow with depth, and a model cut after block k holds k blocks of weights and runs no more than
those.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from llmdpd_jax.models.llm.layers import Dense, ModelConfig, Packing, attend, put_before, token_positions, visible


@dataclass(frozen=True)
class Variant:
    """What tells a family of decoders from the others."""

    norm: str = "rms"  # "rms": RMSNorm with a scale; "layer": LayerNorm without parameters
    pre_norm: bool = True  # norms before attention and MLP
    post_norm: bool = False  # norms on what attention and MLP add
    query_key_norm: str | None = None  # RMSNorm of queries and keys: of each "head", or of "all" heads at once
    qkv_bias: bool = False
    activation: str = "silu"  # of the gate; "gelu": its tanh approximation
    scaled_embeddings: bool = False  # embeddings are multiplied by the square root of the width


# By the name that `model_type` has in Hugging Face configs.
VARIANTS = {
    "llama": Variant(),  # also SmolLM2; arXiv 2302.13971, 2407.21783, 2502.02737
    "olmo": Variant(norm="layer"),  # arXiv 2402.00838
    "olmo2": Variant(pre_norm=False, post_norm=True, query_key_norm="all"),  # arXiv 2501.00656
    "qwen2": Variant(qkv_bias=True),  # arXiv 2407.10671
    "qwen3": Variant(query_key_norm="head"),  # arXiv 2505.09388
    # Norm scales include the 1 that Gemma's own files leave out; arXiv 2503.19786
    "gemma3_text": Variant(post_norm=True, query_key_norm="head", activation="gelu", scaled_embeddings=True),
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864): pair j turns by position * frequency_j."""

    theta: float  # base of the wavelengths
    divisors: tuple[float, ...] = ()  # of the frequencies of all pairs, for models stretched to longer texts; or none

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position [head_dim / 2], float32: theta^(-2j / head_dim) / divisors_j."""
        frequencies = self.theta ** -(np.arange(0, head_dim, 2) / head_dim)
        return (frequencies / np.asarray(self.divisors or 1.0)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """Sizes and constants of a decoder."""

    variant: str  # key of VARIANTS
    num_kv_heads: int  # heads of keys and values; divides num_heads
    head_dim: int
    rope: Rope
    attention_scale: float  # of the products of queries and keys
    clip_qkv: float | None = None  # queries, keys and values are clipped to +- this (OLMo)
    window: int | None = None  # local layers see this many tokens, the own one included
    local_rope: Rope | None = None  # of local layers; global ones have `rope`
    local_layers: tuple[bool, ...] = ()  # for each layer, whether it is local; empty if there is no window
    final_norm: bool = True  # a model cut below its last block has no final norm

    def truncate(self, layer: int) -> "DecoderConfig":
        """As `ModelConfig.truncate`; only the last block is followed by the final norm."""
        final_norm = self.final_norm and layer == self.num_layers
        return replace(super().truncate(layer), local_layers=self.local_layers[:layer], final_norm=final_norm)


def rotation(rope: Rope, positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, L, 1, head_dim / 2], float32, of the angles at `positions` [B, L]."""
    angles = positions[..., None, None].astype(jnp.float32) * rope.frequencies(head_dim)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs of x [B, L, heads, head_dim], the first half of its channels being paired with the second.

    That is the pairing of the Hugging Face checkpoints.
    """
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def norm(config: DecoderConfig, name: str) -> nn.Module:
    """The norm of the config's variant, over the last axis."""
    if VARIANTS[config.variant].norm == "layer":
        return nn.LayerNorm(epsilon=config.norm_eps, use_scale=False, use_bias=False, dtype=config.dtype, name=name)
    return nn.RMSNorm(epsilon=config.norm_eps, dtype=config.dtype, param_dtype=config.dtype, name=name)


class Block(nn.Module):
    """One decoder block, [B, L, D] -> [B, L, D], in the (carry, output) form that `nn.scan` asks for.

    With a packing states are [G, N, D], and cosines and sines are of the kept places; the mask is as without.

    `views` holds (cosines, sines, mask) of global layers and, if the model has a window, of local ones; `local` says
    which kind this layer is. With a mutable collection "cache" the block is given the places from `first` on, and keeps
    the keys and values of all.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, local: jax.Array, views: list[tuple], packing: Packing | None, first: jax.Array | int
    ) -> tuple[jax.Array, None]:
        c = self.config
        variant = VARIANTS[c.variant]
        view = jax.tree.map(lambda whole, near: jnp.where(local, near, whole), *views) if c.window else views[0]
        cos, sin, mask = view

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], -1, c.head_dim)

        def project(y: jax.Array, name: str, num_heads: int, adapted: bool) -> jax.Array:
            y = Dense(c, num_heads * c.head_dim, variant.qkv_bias, adapted, name=name)(y)
            return y if c.clip_qkv is None else jnp.clip(y, -c.clip_qkv, c.clip_qkv)

        def split(y: jax.Array, norm_name: str) -> jax.Array:
            """Heads [B, L, heads, head_dim] of queries or keys, normed if the variant says so, and turned."""
            if variant.query_key_norm == "all":
                y = norm(c, norm_name)(y)
            y = heads(y)
            if variant.query_key_norm == "head":
                y = norm(c, norm_name)(y)
            return rotate(y, cos, sin)

        y = norm(c, "attention_norm")(x) if variant.pre_norm else x
        queries = split(project(y, "query", c.num_heads, adapted=True), "query_norm")
        keys = split(project(y, "key", c.num_kv_heads, adapted=False), "key_norm")
        values = heads(project(y, "value", c.num_kv_heads, adapted=True))
        if self.is_mutable_collection("cache"):
            keys, values = (
                self._remember(name, new, first, mask.shape[-1]) for name, new in (("keys", keys), ("values", values))
            )
        attended = attend(queries, keys, values, mask, c.attention_scale, packing)
        y = Dense(c, c.width, name="output")(attended.reshape(*x.shape[:-1], -1))
        x += norm(c, "attention_post_norm")(y) if variant.post_norm else y

        y = norm(c, "mlp_norm")(x) if variant.pre_norm else x
        gate = Dense(c, c.mlp_width, name="gate")(y)
        gate = nn.silu(gate) if variant.activation == "silu" else nn.gelu(gate, approximate=True)
        y = Dense(c, c.width, name="down")(gate * Dense(c, c.mlp_width, name="up")(y))
        x += norm(c, "mlp_post_norm")(y) if variant.post_norm else y
        return x, None

    def _remember(self, name: str, new: jax.Array, first: jax.Array | int, places: int) -> jax.Array:
        """What is known of all places [B, places, K, d], with the new ones [B, L, K, d] put in from `first` on."""
        shape = (new.shape[0], places, *new.shape[2:])
        memory = self.variable("cache", name, jnp.zeros, shape, new.dtype)
        memory.value = jax.lax.dynamic_update_slice_in_dim(memory.value, new, first, axis=1)
        return memory.value


class Decoder(nn.Module):
    """Token ids [B, L] -> hidden states [B, L, D] after the last block the config keeps.

    `mask` [B, L] tells real tokens from padding, left or right; states at padded places are to be ignored. Attention is
    causal, so with right padding alone no mask is needed. `prefix` [P, D] is a soft prompt put before the embedded
    tokens, whose states are left out. With `kept` [G, N] (see `Packing`) only the states [G, N, D] of these places are
    computed; all real tokens must be among them.

    Given piece by piece, with a mutable collection "cache", the tokens [B, L] are those of the places from `first` on,
    and `mask` [B, M] tells of all places.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        prefix: jax.Array | None = None,
        kept: jax.Array | None = None,
        first: jax.Array | int = 0,
    ) -> jax.Array:
        c = self.config
        initial = nn.initializers.normal(c.width**-0.5)
        kinds = {"dtype": c.dtype, "param_dtype": c.dtype}
        x = nn.Embed(c.vocab_size, c.width, embedding_init=initial, name="embed", **kinds)(tokens)
        if VARIANTS[c.variant].scaled_embeddings:
            x *= jnp.asarray(c.width**0.5, c.dtype)
        if prefix is not None:
            x, mask = put_before(prefix, x, mask)

        length, places = x.shape[1], x.shape[1] if mask is None else mask.shape[1]
        key_positions = token_positions(places, mask)
        positions = jax.lax.dynamic_slice_in_dim(key_positions, first, length, axis=1)
        causal = (jnp.arange(places) <= (first + jnp.arange(length))[:, None])[None]
        masks = [visible(causal, mask, first)]
        if c.window:
            near = positions[:, :, None] - key_positions[:, None, :] < c.window
            masks.append(visible(causal & near, mask, first))
        packing = None
        if kept is not None:
            packing = Packing.of(kept, *tokens.shape, before=length - tokens.shape[1])
            x, positions = packing.pack(x), packing.pack(jnp.broadcast_to(positions, x.shape[:2]))
        ropes = [c.rope, c.local_rope]
        views = [(*rotation(r, positions, c.head_dim), seen) for r, seen in zip(ropes, masks, strict=False)]

        # Inside a scan the blocks cannot be merged with their recomputation, which is what prevent_cse is against.
        blocks = nn.scan(
            nn.remat(Block, prevent_cse=False) if c.remat else Block,
            variable_axes={"params": 0, "lora": 0, "cache": 0, "intermediates": 0},
            split_rngs={"params": True, "lora": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.num_layers,
        )
        local = jnp.array(c.local_layers or (False,) * c.num_layers)
        x, _ = blocks(c, name="layers")(x, local, views, packing, first)
        if c.final_norm:
            x = norm(c, "norm")(x)
        return x[:, length - tokens.shape[1] :] if kept is None else x[:, : kept.shape[1]]
