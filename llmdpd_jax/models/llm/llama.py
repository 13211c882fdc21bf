"""Llama-family decoder in Flax Linen, read for its hidden states rather than for its next-token scores.

RMSNorm before attention and MLP, rotary positions, grouped-query attention, SwiGLU, no biases (Touvron et al. 2023,
arXiv 2302.13971; grouped queries: arXiv 2305.13245). All blocks are one scanned module, so compile time does not grow
with depth, and a model cut after block k holds k blocks of weights and runs no more than those.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from llmdpd_jax.errors import UserError


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a Llama-family decoder; hashable, so it can be a static argument of `jax.jit`."""

    vocab_size: int
    width: int  # D, of the hidden states
    num_layers: int
    num_heads: int
    num_kv_heads: int  # heads of keys and values; divides num_heads
    head_dim: int
    mlp_width: int
    rope_theta: float  # base of the rotary wavelengths
    norm_eps: float
    max_length: int  # longest sequence the model was trained for, in tokens
    final_norm: bool = True  # a model cut below its last block has no final norm
    dtype: str = "float32"  # of weights and activations

    def truncate(self, layer: int) -> "LlamaConfig":
        """The same model cut after block `layer` (1 = first); only the last block is followed by the final norm.

        Raises: UserError if the model has no such block.
        """
        if not 1 <= layer <= self.num_layers:
            raise UserError(f"layer: {layer} is not a layer of this model, choose 1 to {self.num_layers}")
        return replace(self, num_layers=layer, final_norm=layer == self.num_layers)


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding of x [B, L, heads, head_dim], first half paired with second half.

    Position i turns pair j by the angle i / theta^(2j / head_dim) (Su et al. 2021, arXiv 2104.09864, in the pairing of
    the Hugging Face checkpoints). Angles are computed in float32 whatever the dtype of x.
    """
    length, head_dim = x.shape[1], x.shape[-1]
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None].astype(x.dtype), jnp.sin(angles)[:, None].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Block(nn.Module):
    """One decoder block, [B, L, D] -> [B, L, D], in the (carry, output) form that `nn.scan` asks for."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        c = self.config
        dense = partial(
            nn.Dense,
            use_bias=False,
            dtype=c.dtype,
            param_dtype=c.dtype,
            kernel_init=nn.initializers.normal(c.width**-0.5),
        )
        norm = partial(nn.RMSNorm, epsilon=c.norm_eps, dtype=c.dtype, param_dtype=c.dtype)

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], -1, c.head_dim)

        y = norm(name="attention_norm")(x)
        queries = rotate(heads(dense(c.num_heads * c.head_dim, name="query")(y)), c.rope_theta)
        keys = rotate(heads(dense(c.num_kv_heads * c.head_dim, name="key")(y)), c.rope_theta)
        values = heads(dense(c.num_kv_heads * c.head_dim, name="value")(y))
        attended = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
        x = x + dense(c.width, name="output")(attended.reshape(*y.shape[:-1], -1))

        y = norm(name="mlp_norm")(x)
        y = nn.silu(dense(c.mlp_width, name="gate")(y)) * dense(c.mlp_width, name="up")(y)
        return x + dense(c.width, name="down")(y), None


class Llama(nn.Module):
    """Token ids [B, L] -> hidden states [B, L, D] after the last block the config keeps.

    Attention is causal, so with right padding no real token ever sees a padded one: padding needs no mask, and the
    states at padded positions are to be ignored.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        x = nn.Embed(
            c.vocab_size,
            c.width,
            dtype=c.dtype,
            param_dtype=c.dtype,
            embedding_init=nn.initializers.normal(c.width**-0.5),
            name="embed",
        )(tokens)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=c.num_layers,
        )
        x, _ = blocks(c, name="layers")(x)
        if c.final_norm:
            x = nn.RMSNorm(epsilon=c.norm_eps, dtype=c.dtype, param_dtype=c.dtype, name="norm")(x)
        return x


@partial(jax.jit, static_argnames="config")
def hidden_states(config: LlamaConfig, params: dict, tokens: jax.Array) -> jax.Array:
    """Hidden states [B, L, D], float32, of right-padded token ids [B, L] after the last block of `config`.

    float32 matrix products are exact float32 on every backend (accelerators would round them to fewer bits by
    default), so that embeddings cached on one machine serve on another.
    """
    with jax.default_matmul_precision("highest"):
        return Llama(config).apply({"params": params}, tokens).astype(jnp.float32)


@partial(jax.jit, static_argnames="config")
def random_params(config: LlamaConfig, key: jax.Array) -> dict:
    """Weights as at the start of pre-training: normal with deviation width^-0.5, norm scales one."""
    return Llama(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
