"""The denoiser: a noised action, its diffusion step, the observation and the context -> the network's prediction."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.dense import Dense
from llmdpd_jax.models.dit import DiTDenoiser
from llmdpd_jax.models.layers import activation, step_embedding
from llmdpd_jax.types import Array

DENOISERS = ("mlp", "dit")


def make_denoiser(model: ml_collections.ConfigDict, chunk: int) -> nn.Module:
    """The denoiser of the `model` section of a config, for actions of `chunk` steps.

    Raises:
      UserError: a choice that does not exist.
    """
    if model.denoiser not in DENOISERS:
        raise UserError(f"model.denoiser: {model.denoiser!r} is unknown; choose one of {list(DENOISERS)}")
    if model.denoiser == "dit":
        return DiTDenoiser(chunk, model.width, model.depth, model.heads, model.denoiser_activation, model.dtype)
    return MLPDenoiser(model.width, model.depth, model.denoiser_activation, model.dtype)


def fused_context(model: ml_collections.ConfigDict, context: Array) -> Array:
    """What critics are told of a denoiser's context: not the prompts' own vectors that a transformer's goes on with."""
    return context[..., : context.shape[-1] // 3] if model.denoiser == "dit" else context


class MLPDenoiser(nn.Module):
    """Residual MLP. The context modulates every layer (FiLM, Perez et al. 2018).

    The context may have fewer batch axes filled than the action (size 1 broadcasts), so that transitions that share a
    prompt share the work on it. One of width 0 is none.
    """

    width: int = 256
    depth: int = 3
    activation: str = "relu"
    dtype: str = "float32"  # of the hidden layers' arithmetic; parameters and outputs are float32

    @nn.compact
    def __call__(self, x: Array, k: Array, observation: Array, context: Array) -> Array:
        """x [..., A], k float [...], observation [..., O], context [..., C] -> [..., A]."""
        act, dense = activation(self.activation), partial(Dense, self.width, dtype=self.dtype)
        hidden = (
            dense(name="action")(x) + dense(name="observation")(observation) + dense(name="step")(step_embedding(k, 16))
        )
        has_context = context.shape[-1] > 0
        if has_context:
            hidden = hidden + dense(name="context")(context)
        for i in range(self.depth - 1):
            update = dense(name=f"hidden_{i}")(act(hidden))
            if has_context:
                scale, shift = (dense(name=f"{n}_{i}")(context) for n in ("scale", "shift"))
                update = update * (1.0 + scale) + shift
            hidden = hidden + update
        return Dense(x.shape[-1], name="out", kernel_init=nn.initializers.zeros)(act(hidden).astype(jnp.float32))
