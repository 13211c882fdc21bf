"""cheetah_vel: a half cheetah that has to run at a given speed; only the prompt tells which.

The usual benchmark of meta reinforcement learning (Finn et al. 2017; 0 to 3 m/s and 200 steps as in PEARL, Rakelly et
al. 2019): reward = -|v - v*| - 0.05 |a|^2, where v is the torso's speed along the track over the step, v* the target
speed and a the action. Physics: Brax, `spring`.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.tasks.cheetah import CONTROL_COST, make_family, torso_speed
from llmdpd_jax.tasks.family import Task, TaskFamily
from llmdpd_jax.tasks.wording import Quantity
from llmdpd_jax.tasks.wordings.velocity import velocity_wordings

NAME = "cheetah_vel"
FASTEST = 3.0  # m/s
TRAIN_TASKS, TEST_TASKS = 45, 10
TASK_SEED = 2611


def draw(key: jax.Array) -> jax.Array:
    """A target speed `[1]`, uniform in 0 to 3 m/s."""
    return jax.random.uniform(key, (1,), maxval=FASTEST)


def reward(before, after, action: jax.Array, parameters: jax.Array, dt: jax.Array) -> jax.Array:
    """-|v - v*| - 0.05 |a|^2."""
    return -jnp.abs(torso_speed(before, after, dt) - parameters[0]) - CONTROL_COST * jnp.sum(action**2)


def make_tasks() -> tuple[Task, ...]:
    """45 train and 10 test tasks of distinct speeds of two decimals, so that a description can state them exactly."""
    grid = np.arange(1, round(100 * FASTEST) + 1) / 100
    speeds = np.random.default_rng(TASK_SEED).choice(grid, TRAIN_TASKS + TEST_TASKS, replace=False)
    names = [("train", i) for i in range(TRAIN_TASKS)] + [("test", i) for i in range(TEST_TASKS)]
    return tuple(
        Task(f"{split}-{i:02d}", split, {"speed": float(speed)})
        for (split, i), speed in zip(names, speeds, strict=True)
    )


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task."""
    return {"v": Quantity(parameters["speed"])}


@functools.cache
def cheetah_vel() -> TaskFamily:
    """The family, as the registry hands it out."""
    return make_family(
        NAME, "speed", draw, reward, make_tasks, velocity_wordings(), phrases, reference_episodes=20, target="speed"
    )
