"""Brax's half cheetah as a task family: what `cheetah_vel` and `cheetah_dir` have in common."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from llmdpd_jax.tasks.environment import State, make_robot
from llmdpd_jax.tasks.experts import expert_behaviour, expert_file
from llmdpd_jax.tasks.family import Task, TaskFamily, TimeView
from llmdpd_jax.tasks.physics import BACKEND, PhysicsTask
from llmdpd_jax.tasks.wording import Quantity, WordingSet, as_wordings

HORIZON = 200
CONTROL_COST = 0.05


def torso_speed(before: State, after: State, dt: jax.Array) -> jax.Array:
    """The torso's speed along the track over a step (m/s)."""
    return (after.x.pos[0, 0] - before.x.pos[0, 0]) / dt


def make_cheetah(draw: Callable, reward: Callable, backend: str = BACKEND) -> PhysicsTask:
    """Brax's half cheetah, `draw` and `reward` as for `PhysicsTask`.

    Observation: 8 positions (without x), 9 velocities; action: 6 torques.
    """
    return PhysicsTask(make_robot("halfcheetah", backend), draw, reward)


def make_family(
    name: str,
    parameter: str,
    draw: Callable,
    reward: Callable,
    tasks: Callable[[], tuple[Task, ...]],
    wordings: WordingSet,
    phrases: Callable[[Mapping[str, float]], dict[str, str | Quantity]],
    reference_episodes: int,
    target: str | None = None,
) -> TaskFamily:
    """The family of tasks with one parameter; `target` names it if the torso's speed should reach it."""
    return TaskFamily(
        name=name,
        horizon=HORIZON,
        observation_low=(-np.inf,) * 17,
        observation_high=(np.inf,) * 17,
        action_low=(-1.0,) * 6,
        action_high=(1.0,) * 6,
        parameter_names=(parameter,),
        make_env=functools.partial(make_cheetah, draw, reward),
        tasks=tasks,
        behaviour=functools.partial(expert_behaviour, name),
        wordings=as_wordings(wordings),
        phrases=phrases,
        reference_episodes=reference_episodes,
        expert=expert_file(name),
        view=TimeView(observation=8, label="speed of the torso (m/s)", target=target),
    )
