"""cheetah_dir: a half cheetah that has to run forward or backward; only the prompt tells which.

The usual benchmark of meta reinforcement learning (Finn et al. 2017; 200 steps as in PEARL, Rakelly et al. 2019):
reward = s v - 0.05 |a|^2, where v is the torso's speed along the track over the step (m/s), s is 1 or -1 and a the
action. Physics: Brax, `spring`.

No direction is left that training has not seen: the test tasks are the two train tasks again, with data of their own.
So this family shows whether prompts are understood, in wordings never read among others, and not whether a policy
generalises.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from llmdpd_jax.tasks.cheetah import CONTROL_COST, make_family, torso_speed
from llmdpd_jax.tasks.environment import State
from llmdpd_jax.tasks.family import SPLITS, Task, TaskFamily
from llmdpd_jax.tasks.wording import Quantity
from llmdpd_jax.tasks.wordings.way import way_wordings

NAME = "cheetah_dir"


def draw(key: jax.Array) -> jax.Array:
    """One of the two directions `[1]`: 1 is forward, -1 backward."""
    return jax.random.rademacher(key, (1,), jnp.float32)


def reward(before: State, after: State, action: jax.Array, parameters: jax.Array, dt: jax.Array) -> jax.Array:
    """s v - 0.05 |a|^2."""
    return parameters[0] * torso_speed(before, after, dt) - CONTROL_COST * jnp.sum(action**2)


def make_tasks() -> tuple[Task, ...]:
    """Both directions in both splits."""
    return tuple(
        Task(f"{split}-{name}", split, {"direction": direction})
        for split in SPLITS
        for name, direction in (("forward", 1.0), ("backward", -1.0))
    )


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task."""
    return {"way": Quantity(parameters["direction"])}


@functools.cache
def cheetah_dir() -> TaskFamily:
    """The family, as the registry hands it out."""
    return make_family(NAME, "direction", draw, reward, make_tasks, way_wordings(), phrases, reference_episodes=50)
