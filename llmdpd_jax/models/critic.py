"""The critic, an ensemble of action values, and the MLP that it and the agent's predictions are made of."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from llmdpd_jax.models.dense import Dense
from llmdpd_jax.models.layers import activation
from llmdpd_jax.types import Array


def each_by_itself(sizes: Sequence[int]) -> nn.initializers.Initializer:
    """Initial kernel [sum of sizes, width] of a layer that reads several inputs as if each had a layer of its own."""

    def start(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
        keys = jax.random.split(key, len(sizes))
        parts = [
            nn.initializers.lecun_normal()(k, (size, shape[1]), dtype) for k, size in zip(keys, sizes, strict=True)
        ]
        return jnp.concatenate(parts)

    return start


class ConditionedMLP(nn.Module):
    """MLP on (observation, action, context) or (observation, context); layer norm keeps offline values from
    running away (Ball et al. 2023).
    """

    outputs: int
    width: int = 256
    depth: int = 3
    activation: str = "relu"
    layer_norm: bool = True
    dtype: str = "float32"  # of the hidden layers' arithmetic; parameters and outputs are float32

    @nn.compact
    def __call__(self, observation: Array, action: Array | None, context: Array) -> Array:
        """observation [..., O], action [..., A] or None, context [..., C] -> [..., outputs].

        The context broadcasts; one of width 0 is none.
        """
        act = activation(self.activation)
        inputs = [observation] if action is None else [observation, action]
        start = each_by_itself([x.shape[-1] for x in inputs])
        dense = partial(Dense, self.width, dtype=self.dtype)
        hidden = dense(name="input", kernel_init=start)(jnp.concatenate(inputs, axis=-1))
        if context.shape[-1] > 0:
            hidden = hidden + dense(name="context", use_bias=False)(context)
        for i in range(self.depth):
            if i > 0:
                hidden = dense(name=f"hidden_{i}")(hidden)
            if self.layer_norm:
                hidden = nn.LayerNorm(name=f"norm_{i}", dtype=self.dtype)(hidden)
            hidden = act(hidden)
        return Dense(self.outputs, name="out")(hidden.astype(jnp.float32))


class Critic(nn.Module):
    """Ensemble of Q(s, a | c): observation [..., O], action [..., A], context [..., C] -> [ensemble, ...]."""

    ensemble: int = 2
    width: int = 256
    depth: int = 3
    activation: str = "relu"
    layer_norm: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, observation: Array, action: Array, context: Array) -> Array:
        members = nn.vmap(
            ConditionedMLP,
            in_axes=(0, 0, None),
            out_axes=0,
            axis_size=self.ensemble,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(1, self.width, self.depth, self.activation, self.layer_norm, self.dtype, name="members")
        seen, done = (jnp.broadcast_to(x, (self.ensemble, *x.shape)) for x in (observation, action))
        return jnp.squeeze(members(seen, done, context), axis=-1)
