"""Bidirectional text encoders of the BERT family in Flax Linen: MiniLM, BGE and their like.

Learned positions, LayerNorm after each addition, biases everywhere (Devlin et al. 2018, arXiv 1810.04805; MiniLM:
arXiv 2002.10957; BGE: arXiv 2309.07597). Scanned over blocks and cut at a block like `decoder.Decoder`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from llmdpd_jax.models.llm.layers import Dense, ModelConfig, Packing, attend, put_before, token_positions, visible


@dataclass(frozen=True, kw_only=True)
class BertConfig(ModelConfig):
    """Sizes and constants of a BERT-family encoder."""

    num_token_types: int = 2  # rows of the table of token types; a text on its own is of type 0


def norm(config: BertConfig, name: str) -> nn.Module:
    """LayerNorm over the last axis."""
    return nn.LayerNorm(epsilon=config.norm_eps, dtype=config.dtype, param_dtype=config.dtype, name=name)


def gelu(x: jax.Array) -> jax.Array:
    """x times the standard normal distribution function at x (arXiv 1606.08415).

    By erf, as BERT defines it: `jax.nn.gelu` goes by erfc, which took 2.5 ns per element on a CPU against 0.9.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


class BertBlock(nn.Module):
    """One encoder block, [B, L, D] -> [B, L, D], in the (carry, output) form that `nn.scan` asks for.

    With a packing states are [G, N, D].
    """

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, packing: Packing | None) -> tuple[jax.Array, None]:
        c = self.config
        head_dim = c.width // c.num_heads

        def project(name: str, adapted: bool) -> jax.Array:
            y = Dense(c, c.width, use_bias=True, adapted=adapted, name=name)(x)
            return y.reshape(*y.shape[:-1], c.num_heads, head_dim)

        queries, keys, values = project("query", True), project("key", False), project("value", True)
        attended = attend(queries, keys, values, mask, head_dim**-0.5, packing).reshape(x.shape)
        x = norm(c, "attention_norm")(x + Dense(c, c.width, use_bias=True, name="output")(attended))

        y = gelu(Dense(c, c.mlp_width, use_bias=True, name="up")(x))
        return norm(c, "mlp_norm")(x + Dense(c, c.width, use_bias=True, name="down")(y)), None


class Bert(nn.Module):
    """Token ids [B, L] -> hidden states [B, L, D] after the last block the config keeps; called like `Decoder`.

    Every token sees every real one, so padding needs its `mask` [B, L]; without one all tokens are real.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        prefix: jax.Array | None = None,
        kept: jax.Array | None = None,
    ) -> jax.Array:
        c = self.config

        def table(rows: int, name: str) -> nn.Embed:
            initial = nn.initializers.normal(c.width**-0.5)
            return nn.Embed(rows, c.width, dtype=c.dtype, param_dtype=c.dtype, embedding_init=initial, name=name)

        x = table(c.vocab_size, "embed")(tokens)
        if prefix is not None:
            x, mask = put_before(prefix, x, mask)
        length = x.shape[1]
        x += table(c.max_length, "positions")(token_positions(length, mask))
        x += table(c.num_token_types, "token_types")(jnp.zeros((1, 1), jnp.int32))
        packing = None
        if kept is not None:
            packing = Packing.of(kept, *tokens.shape, before=length - tokens.shape[1])
            x = packing.pack(x)
        x = norm(c, "embed_norm")(x)

        blocks = nn.scan(
            nn.remat(BertBlock, prevent_cse=False) if c.remat else BertBlock,
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True, "lora": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
        )
        x, _ = blocks(c, name="layers")(x, visible(jnp.ones((1, length, length), bool), mask), packing)
        return x[:, length - tokens.shape[1] :] if kept is None else x[:, : kept.shape[1]]
