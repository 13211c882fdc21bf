"""A small transformer as denoiser, after DiT (Peebles & Xie 2023, arXiv 2212.09748)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmdpd_jax.models.dense import Dense, DenseGeneral
from llmdpd_jax.models.layers import activation, step_embedding
from llmdpd_jax.types import Array


class Attention(nn.Module):
    """Tokens [..., Q, D] attend to others [..., K, D], whose batch axes broadcast: what is shared is read once.

    -> [..., Q, D].
    """

    heads: int = 4
    zero_init: bool = False  # of what is added to the tokens
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Array, others: Array) -> Array:
        width = tokens.shape[-1]
        shape = self.heads, width // self.heads
        query = DenseGeneral(shape, dtype=self.dtype, name="query")(tokens)
        key, value = (DenseGeneral(shape, dtype=self.dtype, name=name)(others) for name in ("key", "value"))
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / jnp.sqrt(shape[-1])
        read = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), value)
        init = nn.initializers.zeros if self.zero_init else nn.linear.default_kernel_init
        return DenseGeneral(width, axis=(-2, -1), kernel_init=init, dtype=self.dtype, name="out")(read)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Tokens [..., L, D] after a layer norm without parameters; shift and scale [..., D] take their place (AdaLN)."""
    return x * (1.0 + scale[..., None, :]) + shift[..., None, :]


class DiTBlock(nn.Module):
    """Self-attention, attention to prompts and an MLP; the first and last modulated by a condition (AdaLN-Zero).

    Each starts as the identity: gates (DiT, section 3.2) and what prompts add (PixArt-alpha, arXiv 2310.00426, section
    2.3) are 0 at first.
    """

    heads: int = 4
    activation: str = "relu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Array, condition: Array, prompts: Array | None) -> Array:
        """tokens [..., L, D], condition [..., D], prompts [..., K, D] or None -> [..., L, D]."""
        width, dense = tokens.shape[-1], partial(Dense, dtype=self.dtype)
        modulation = dense(6 * width, kernel_init=nn.initializers.zeros, name="modulation")(condition)
        shift_0, scale_0, gate_0, shift_1, scale_1, gate_1 = jnp.split(modulation, 6, axis=-1)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name=name)

        seen = modulate(norm("norm_0")(tokens), shift_0, scale_0)
        tokens = tokens + gate_0[..., None, :] * Attention(self.heads, dtype=self.dtype, name="attention")(seen, seen)
        if prompts is not None:
            read = Attention(self.heads, zero_init=True, dtype=self.dtype, name="prompts")
            tokens = tokens + read(nn.LayerNorm(dtype=self.dtype, name="norm_prompts")(tokens), prompts)
        hidden = dense(4 * width, name="hidden")(modulate(norm("norm_1")(tokens), shift_1, scale_1))
        update = dense(width, name="update")(activation(self.activation)(hidden))
        return tokens + gate_1[..., None, :] * update


class DiTDenoiser(nn.Module):
    """A token for each action of a chunk and one for the observation; prompts are attended to.

    Diffusion step, observation and fused context modulate every layer. The context may have fewer batch axes filled
    than the action (size 1 broadcasts); one of width 0 is none.
    """

    chunk: int = 1
    width: int = 256
    depth: int = 3
    heads: int = 4
    activation: str = "relu"
    dtype: str = "float32"  # of the hidden layers' arithmetic; parameters and outputs are float32

    @nn.compact
    def __call__(self, x: Array, k: Array, observation: Array, context: Array) -> Array:
        """x [..., H * A], k float [...], observation [..., O], context [..., 3 C] -> [..., H * A].

        The context is the fused one and the vectors of text and trajectory prompt, C numbers each (`PromptEncoder`
        with `keep_prompts`).
        """
        dense = partial(Dense, self.width, dtype=self.dtype)

        def learned(name: str, rows: int) -> Array:
            return self.param(name, nn.initializers.normal(0.02), (rows, self.width)).astype(self.dtype)

        actions = x.reshape(*x.shape[:-1], self.chunk, -1)
        tokens = dense(name="action")(actions)
        tokens = tokens + learned("position", self.chunk)
        seen = dense(name="observation")(observation)
        condition = seen + dense(name="step")(step_embedding(k, 16))
        prompts = None
        if context.shape[-1] > 0:
            fused, *vectors = jnp.split(context, 3, axis=-1)
            condition = condition + dense(name="context")(fused)
            prompts = dense(name="prompt")(jnp.stack(vectors, axis=-2))
            prompts = prompts + learned("kind", 2)
        condition = nn.silu(dense(name="condition")(nn.silu(condition)))

        batch = jnp.broadcast_shapes(tokens.shape[:-2], seen.shape[:-1])
        tokens = jnp.broadcast_to(tokens, (*batch, *tokens.shape[-2:]))
        tokens = jnp.concatenate([jnp.broadcast_to(seen, (*batch, self.width))[..., None, :], tokens], axis=-2)
        for i in range(self.depth):
            tokens = DiTBlock(self.heads, self.activation, self.dtype, name=f"block_{i}")(tokens, condition, prompts)
        modulation = Dense(2 * self.width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="modulation")(
            condition
        )
        tokens = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name="norm")(tokens[..., 1:, :])
        tokens = modulate(tokens, *jnp.split(modulation, 2, axis=-1))
        output = Dense(actions.shape[-1], kernel_init=nn.initializers.zeros, name="out")(tokens.astype(jnp.float32))
        return output.reshape(*output.shape[:-2], -1)
