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
import numpy as np

from llmdpd_jax.tasks.environment import State, make_robot
from llmdpd_jax.tasks.experts import expert_behaviour, expert_file
from llmdpd_jax.tasks.family import SPLITS, Task, TaskFamily, TimeView
from llmdpd_jax.tasks.physics import BACKEND, PhysicsTask
from llmdpd_jax.tasks.wording import Quantity, as_wordings
from llmdpd_jax.tasks.wordings.way import way_wordings

NAME = "cheetah_dir"
HORIZON = 200
CONTROL_COST = 0.05


def draw(key: jax.Array) -> jax.Array:
    """One of the two directions `[1]`: 1 is forward, -1 backward."""
    return jax.random.rademacher(key, (1,), jnp.float32)


def reward(before: State, after: State, action: jax.Array, parameters: jax.Array, dt: jax.Array) -> jax.Array:
    """s v - 0.05 |a|^2."""
    speed = (after.x.pos[0, 0] - before.x.pos[0, 0]) / dt
    return parameters[0] * speed - CONTROL_COST * jnp.sum(action**2)


def make_env(backend: str = BACKEND) -> PhysicsTask:
    """Brax's half cheetah under this reward. Observation: 8 positions (without x), 9 velocities; action: 6 torques."""
    return PhysicsTask(make_robot("halfcheetah", backend), draw, reward)


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
    return TaskFamily(
        name=NAME,
        horizon=HORIZON,
        observation_low=(-np.inf,) * 17,
        observation_high=(np.inf,) * 17,
        action_low=(-1.0,) * 6,
        action_high=(1.0,) * 6,
        parameter_names=("direction",),
        make_env=make_env,
        tasks=make_tasks,
        behaviour=functools.partial(expert_behaviour, NAME),
        wordings=as_wordings(way_wordings()),
        phrases=phrases,
        reference_episodes=50,
        expert=expert_file(NAME),
        view=TimeView(observation=8, label="speed of the torso (m/s)", target=None),
    )
