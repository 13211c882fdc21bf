"""reacher_goal: an arm of two links that has to bring its fingertip to a point that only the prompt tells.

Gymnasium's Reacher with the target hidden (v5; Towers et al. 2024): reward = -|p - g| - 0.1 |a|^2, where p is the
fingertip after the step, g the goal and a the two torques. 0.1 is the weight that its documentation names. (Its code
has 1, where a random policy loses three times as much by its torques as by its distance, and never to move would score
like an expert.) Episodes have its 50 steps, of 0.04 s instead of 0.02: Brax's arm takes about a second to the far side,
and half of an episode should show whether it stays. Physics: Brax, `spring`.

Data are logged by a controller that knows the goal, more or less: joint angles that put the fingertip there follow from
the lengths of the links, and torques proportional to the angles' errors, less damping, take the arm to them.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.tasks.controllers import inaccurate_behaviour
from llmdpd_jax.tasks.environment import State, make_robot, point_on
from llmdpd_jax.tasks.family import PlaneView, Task, TaskFamily
from llmdpd_jax.tasks.physics import BACKEND, PhysicsTask
from llmdpd_jax.tasks.wording import Quantity, as_wordings
from llmdpd_jax.tasks.wordings.point import point_wordings

NAME = "reacher_goal"
HORIZON = 50
FRAMES = 8  # of 0.005 s in a step
NEAREST, FARTHEST = 0.02, 0.2  # m from the shoulder; the elbow does not bend further, the arm is 0.21 m long
CONTROL_COST = 0.1
UPPER, LOWER = 0.1, 0.11  # m from shoulder to elbow, and from there to the fingertip
FOREARM = 1  # the link of Brax's model
STIFFNESS, DAMPING = 1.0, 0.45  # of the controller: torque per rad, and per rad/s; of 20 pairs the best return
TRAIN_TASKS, TEST_TASKS = 45, 10
TASK_SEED = 2611


def draw(key: jax.Array) -> jax.Array:
    """A goal `[2]`, uniform over the ring that the arm reaches."""
    key_radius, key_angle = jax.random.split(key)
    radius = jnp.sqrt(jax.random.uniform(key_radius, minval=NEAREST**2, maxval=FARTHEST**2))
    angle = jax.random.uniform(key_angle, maxval=2 * jnp.pi)
    return radius * jnp.array([jnp.cos(angle), jnp.sin(angle)])


def fingertip(state: State) -> jax.Array:
    """Its place `[2]` on the plane, in metres from the shoulder."""
    return point_on(state, FOREARM, (LOWER, 0.0, 0.0))[:2]


def observe(state: State) -> jax.Array:
    """Fingertip (x, y), cosines and sines of both joints' angles, their speeds (rad/s): `[8]`.

    Brax's own observation holds the target, which is drawn by chance and has no part in the task.
    """
    angles, speeds = state.q[:2], state.qd[:2]
    return jnp.concatenate([fingertip(state), jnp.cos(angles), jnp.sin(angles), speeds])


def reward(before: State, after: State, action: jax.Array, parameters: jax.Array, dt: jax.Array) -> jax.Array:
    """-|p - g| - 0.1 |a|^2."""
    del before, dt
    return -jnp.linalg.norm(fingertip(after) - parameters) - CONTROL_COST * jnp.sum(action**2)


def make_env(backend: str = BACKEND) -> PhysicsTask:
    """Brax's reacher under this reward. Observation: see `observe`; action: torques of shoulder and elbow."""
    return PhysicsTask(make_robot("reacher", backend, n_frames=FRAMES), draw, reward, observe=observe)


def make_tasks() -> tuple[Task, ...]:
    """45 train and 10 test tasks of distinct goals of two decimals, so that a description can state them exactly."""
    axis = np.arange(-round(100 * FARTHEST), round(100 * FARTHEST) + 1)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    radius = np.hypot(*grid.T) / 100
    grid = grid[(radius >= NEAREST) & (radius <= FARTHEST)]
    goals = np.random.default_rng(TASK_SEED).choice(grid, TRAIN_TASKS + TEST_TASKS, replace=False) / 100
    names = [("train", i) for i in range(TRAIN_TASKS)] + [("test", i) for i in range(TEST_TASKS)]
    return tuple(
        Task(f"{split}-{i:02d}", split, {"goal_x": float(x), "goal_y": float(y)})
        for (split, i), (x, y) in zip(names, goals, strict=True)
    )


def angles_at(place: jax.Array, elbow: jax.Array) -> jax.Array:
    """Angles `[2]` of shoulder and elbow (rad) that put the fingertip at `place` `[2]`, or as near as it gets.

    Of the two ways to bend there it is the one with the sign of the angle `elbow`.
    """
    cosine = (jnp.sum(place**2) - UPPER**2 - LOWER**2) / (2 * UPPER * LOWER)
    bend = jnp.where(elbow < 0, -1.0, 1.0) * jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    shoulder = jnp.arctan2(place[1], place[0])
    return jnp.array([shoulder - jnp.arctan2(LOWER * jnp.sin(bend), UPPER + LOWER * jnp.cos(bend)), bend])


def torques_towards(goal: jax.Array, observation: jax.Array) -> jax.Array:
    """The expert's torques `[2]`, which bring the fingertip to the goal `[2]` and hold it there."""
    _, cosines, sines, speeds = jnp.split(observation, 4)
    angles = jnp.arctan2(sines, cosines)
    off = angles_at(goal, angles[1]) - angles
    off = off.at[0].set(jnp.arctan2(jnp.sin(off[0]), jnp.cos(off[0])))  # the shorter way round; the elbow has a stop
    return jnp.clip(STIFFNESS * off - DAMPING * speeds, -1.0, 1.0)


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task."""
    return {"x": Quantity(parameters["goal_x"]), "y": Quantity(parameters["goal_y"])}


@functools.cache
def reacher_goal() -> TaskFamily:
    """The family, as the registry hands it out."""
    return TaskFamily(
        name=NAME,
        horizon=HORIZON,
        observation_low=(-np.inf,) * 8,
        observation_high=(np.inf,) * 8,
        action_low=(-1.0,) * 2,
        action_high=(1.0,) * 2,
        parameter_names=("goal_x", "goal_y"),
        make_env=make_env,
        tasks=make_tasks,
        behaviour=functools.partial(inaccurate_behaviour, control=torques_towards, error=0.12),
        wordings=as_wordings(point_wordings()),
        phrases=phrases,
        reference_episodes=100,
        view=PlaneView(position=(0, 1), goal=("goal_x", "goal_y")),
    )
