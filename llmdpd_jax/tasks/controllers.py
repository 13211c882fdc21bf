"""Behaviour policies of families whose expert is a controller that knows the goal: it, or worse ones made of it."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from llmdpd_jax.tasks.family import Behaviour, check_quality

Control = Callable[[jax.Array, jax.Array], jax.Array]  # (parameters [P], observation [O]) -> action [A] in [-1, 1]


@struct.dataclass
class Traits:
    """What one behaviour episode keeps throughout."""

    belief: jax.Array  # [P] the parameters it acts on: those of the task, or wrong ones
    gain: jax.Array  # share of the controller's action that it applies
    noise: jax.Array  # half-width of the uniform noise on each action


def inaccurate_behaviour(quality: str, control: Control, error: float) -> Behaviour:
    """The policy of that quality, whose worse ones take the goal to be somewhere near it.

    Args:
        quality: one of QUALITIES. "mixed" is a learner's log, uniformly random at first, the controller at last, and
            "replay" its first half; "medium" goes wrong by whole episodes as well as by noise.
        control: the controller.
        error: standard deviation of each coordinate of the goal, as the worst learner takes it to be.

    Raises:
        UserError: unknown quality.
    """
    check_quality(quality)

    def draw(key: jax.Array, progress: jax.Array, parameters: jax.Array) -> Traits:
        if quality == "medium":
            error_key, gain_key = jax.random.split(key)
            return Traits(
                belief=parameters + error * 2 / 3 * jax.random.normal(error_key, parameters.shape),
                gain=jax.random.uniform(gain_key, minval=0.1, maxval=0.6),
                noise=jnp.asarray(0.8),
            )
        skill = jnp.asarray({"random": 0.0, "replay": progress / 2, "mixed": progress, "expert": 1.0}[quality])
        # Without skill nothing is aimed at.
        wrong = (1 - skill) * error * jax.random.normal(key, parameters.shape)
        return Traits(belief=parameters + wrong, gain=skill, noise=1 - skill)

    return Behaviour(draw, partial(act, control))


def mistaken_behaviour(
    quality: str, control: Control, another: Callable[[jax.Array, jax.Array], jax.Array]
) -> Behaviour:
    """The policy of that quality, whose worse ones take the task for another one altogether.

    Args:
        quality: one of QUALITIES. "mixed" is a learner's log: random at first, then it takes the task for another one
            less and less often, at last the controller; "replay" is its first half. "medium" knows the task in two
            episodes of five, with half the controller's action and as much noise.
        control: the controller.
        another: `(key, parameters [P]) -> parameters [P]` of some other task.

    Raises:
        UserError: unknown quality.
    """
    check_quality(quality)

    def draw(key: jax.Array, progress: jax.Array, parameters: jax.Array) -> Traits:
        key_another, key = jax.random.split(key)
        skill = {"random": 0.0, "replay": progress / 2, "medium": 0.5, "mixed": progress, "expert": 1.0}[quality]
        knows = jax.random.uniform(key) < (0.4 if quality == "medium" else skill)
        belief = jnp.where(knows, parameters, another(key_another, parameters))
        return Traits(belief=belief, gain=jnp.asarray(skill), noise=jnp.asarray(1.0 - skill))

    return Behaviour(draw, partial(act, control))


def act(control: Control, traits: Traits, parameters: jax.Array, observation: jax.Array, key: jax.Array) -> jax.Array:
    """The share of the controller's action that a behaviour applies, plus noise. `[A]`, not yet clipped."""
    del parameters
    wanted = control(traits.belief, observation)
    noise = jax.random.uniform(key, wanted.shape, minval=-1.0, maxval=1.0)
    return traits.gain * wanted + traits.noise * noise
