"""Behaviour policies of families whose expert is a controller that knows the goal: it, or worse ones made of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.family import QUALITIES, Behaviour


@struct.dataclass
class Traits:
    """What one behaviour episode keeps throughout."""

    error: jax.Array  # [P] where it takes the goal to be, relative to the goal
    gain: jax.Array  # share of the controller's action that it applies
    noise: jax.Array  # half-width of the uniform noise on each action


def controller_behaviour(quality: str, control: Callable[[jax.Array, jax.Array], jax.Array], error: float) -> Behaviour:
    """The policy of that quality.

    Args:
        quality: one of QUALITIES. "mixed" is a learner's log, uniformly random at first, the controller at last, and
            "replay" its first half; "medium" goes wrong by whole episodes as well as by noise.
        control: `(goal [P], observation [O]) -> action [A]` of the controller, in [-1, 1].
        error: standard deviation of each coordinate of the goal, as the worst learner takes it to be.

    Raises:
        UserError: unknown quality.
    """
    if quality not in QUALITIES:
        raise UserError(f"unknown quality {quality!r} (known: {', '.join(QUALITIES)})")

    def draw(key: jax.Array, progress: jax.Array, parameters: jax.Array) -> Traits:
        if quality == "medium":
            error_key, gain_key = jax.random.split(key)
            return Traits(
                error=error * 2 / 3 * jax.random.normal(error_key, parameters.shape),
                gain=jax.random.uniform(gain_key, minval=0.1, maxval=0.6),
                noise=jnp.asarray(0.8),
            )
        skill = jnp.asarray({"random": 0.0, "replay": progress / 2, "mixed": progress, "expert": 1.0}[quality])
        # Without skill nothing is aimed at.
        wrong = (1 - skill) * error * jax.random.normal(key, parameters.shape)
        return Traits(error=wrong, gain=skill, noise=1 - skill)

    def act(traits: Traits, parameters: jax.Array, observation: jax.Array, key: jax.Array) -> jax.Array:
        wanted = control(parameters + traits.error, observation)
        noise = jax.random.uniform(key, wanted.shape, minval=-1.0, maxval=1.0)
        return traits.gain * wanted + traits.noise * noise

    return Behaviour(draw, act)
