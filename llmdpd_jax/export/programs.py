"""A policy as programs of plain arrays, which `jax.export` can write: prompts -> context, observations -> actions.

Parameters and units are constants of the programs. The two share none, so nothing is stored twice; a file is as large
as the parameters it needs, for all platforms together; and no two files can be paired wrongly. Handed over, they
were no faster to load or compile, and slower to call.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from llmdpd_jax.agents.diffusion_ql import Context
from llmdpd_jax.data.normalise import normalise_trajectory
from llmdpd_jax.policy import Policy
from llmdpd_jax.prompts.table import normalise_text
from llmdpd_jax.types import Array, TextPrompt, TrajectoryPrompt

KEYS = "threefry2x32"  # typed keys are not handed over: a program takes the two words of such a key


class Program(NamedTuple):
    """A function of arrays, and what it is to be called with."""

    function: Callable[..., Array]
    arguments: dict[str, Any]  # name -> shape and type, or a dict of such; in the order of the call


def pack_context(context: Context) -> Array:
    """The three vectors of a context as one array [..., 3, C], which needs no class to be read back."""
    return jnp.stack([getattr(context, field.name) for field in fields(Context)], axis=-2)


def unpack_context(packed: Array) -> Context:
    """Inverse of `pack_context`."""
    return Context(*(packed[..., i, :] for i in range(len(fields(Context)))))


def act_program(policy: Policy, contexts: Array | None, **options: Any) -> Program:
    """`(observation [batch, O], key [2], ...) -> action [batch, A]`, or [batch, H, A] of a policy that plans chunks.

    Args:
      contexts: [N, 3, C], packed. If there are several, the third argument is which of them each observation belongs
        to (NaN comes of one that is not there). None: it is the context itself, [batch, 3, C].
      **options: as for `Policy.act_function`.
    """
    (batch,) = export.symbolic_shape("batch")
    arguments = {
        "observation": jax.ShapeDtypeStruct((batch, policy.observation_size), jnp.float32),
        "key": jax.ShapeDtypeStruct((2,), jnp.uint32),
    }
    if contexts is None:
        arguments["context"] = jax.ShapeDtypeStruct((batch, *context_shape(policy)), jnp.float32)
    elif len(contexts) > 1:
        arguments["index"] = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def act(observation: Array, key: Array, told: Array | None = None) -> Array:
        if contexts is None:
            context = told
        elif told is None:
            context = contexts[0]
        else:
            context = contexts.at[told].get(mode="fill", fill_value=jnp.nan)
        key = jax.random.wrap_key_data(key, impl=KEYS)
        return policy.act_function(policy.params, observation, unpack_context(context), key, **options)

    return Program(act, arguments)


def prompt_program(policy: Policy) -> Program:
    """`(text, trajectory, has_text [batch], has_trajectory [batch]) -> context [batch, 3, C]`.

    Text and trajectory are dicts of the fields of `TextPrompt` [batch, tokens, ...], in the LLM's own units, and of
    `TrajectoryPrompt` [batch, T, ...], in the environment's. What the flags say is absent is ignored.
    """
    batch, tokens = export.symbolic_shape("batch, tokens")
    checkpoint, steps = policy.checkpoint, policy.config.data.prompt_length

    def array(*shape: Any, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    text = TextPrompt(
        states=array(tokens, checkpoint.metadata["llm_width"]),
        mask=array(tokens, dtype=jnp.bool_),
        numbers=array(tokens),
        number_index=array(tokens, dtype=jnp.int32),
    )
    trajectory = TrajectoryPrompt(
        observations=array(steps, policy.observation_size),
        actions=array(steps, policy.action_size),
        rewards=array(steps),
        next_observations=array(steps, policy.observation_size),
        mask=array(steps, dtype=jnp.bool_),
    )
    flag = array(dtype=jnp.bool_)

    def prompt(text: dict, trajectory: dict, has_text: Array, has_trajectory: Array) -> Array:
        prompts = (
            normalise_text(checkpoint.text_statistics, TextPrompt(**text)),
            normalise_trajectory(checkpoint.statistics, TrajectoryPrompt(**trajectory)),
        )
        return pack_context(policy.context_function(policy.params, *prompts, has_text, has_trajectory))

    arguments = {"text": vars(text), "trajectory": vars(trajectory), "has_text": flag, "has_trajectory": flag}
    return Program(prompt, arguments)


def context_shape(policy: Policy) -> tuple[int, int]:
    """Of a packed context: (3, C)."""
    parts = 3 if policy.config.model.denoiser == "dit" else 1
    return len(fields(Context)), parts * policy.config.model.context_width


def export_program(program: Program, platforms: Sequence[str]) -> export.Exported:
    """The program as StableHLO for these platforms; `jax.export.deserialize` reads what its `serialize()` gives."""
    return export.export(jax.jit(program.function), platforms=platforms)(*program.arguments.values())
