"""ant_goal: an ant that has to walk to a point that only the prompt tells, and stay there.

As in PEARL (Rakelly et al. 2019), where goals lie within 3 m of the start and episodes have 200 steps: reward =
-|p - g| - 0.1 |a|^2, where p is the torso's place on the plane after the step (m), g the goal and a the eight torques.
Distances are Euclidean (PEARL sums those along x and y), so that no direction is worth more than another. The shipped
expert walks 3 m in a fifth of an episode, so that most of it shows whether it stays. Nothing ends an episode but its
length; PEARL's cost of contacts is left out, as Brax has none. Physics: Brax, `spring`, steps of 0.05 s.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.tasks.ant import BODY, act_towards, make_ant, towards
from llmdpd_jax.tasks.environment import State
from llmdpd_jax.tasks.experts import expert_behaviour, expert_file
from llmdpd_jax.tasks.family import Frame, PlaneView, Task, TaskFamily
from llmdpd_jax.tasks.physics import BACKEND, PhysicsTask
from llmdpd_jax.tasks.wording import Quantity, as_wordings
from llmdpd_jax.tasks.wordings.point import point_wordings

NAME = "ant_goal"
HORIZON = 200
FARTHEST = 3.0  # m from the start
CONTROL_COST = 0.1
TRAIN_TASKS, TEST_TASKS = 45, 10
TASK_SEED = 2611


def draw(key: jax.Array) -> jax.Array:
    """A goal `[2]`, uniform over the disc."""
    key_radius, key_angle = jax.random.split(key)
    radius = FARTHEST * jnp.sqrt(jax.random.uniform(key_radius))
    angle = jax.random.uniform(key_angle, maxval=2 * jnp.pi)
    return radius * jnp.array([jnp.cos(angle), jnp.sin(angle)])


def reward(before: State, after: State, action: jax.Array, parameters: jax.Array, dt: jax.Array) -> jax.Array:
    """-|p - g| - 0.1 |a|^2."""
    del before, dt
    return -jnp.linalg.norm(after.x.pos[0, :2] - parameters) - CONTROL_COST * jnp.sum(action**2)


def make_env(backend: str = BACKEND) -> PhysicsTask:
    """Brax's ant under this reward. Observation: 15 positions, x and y first, 14 velocities; action: 8 torques."""
    return PhysicsTask(make_ant(backend, exclude_current_positions_from_observation=False), draw, reward)


def make_tasks() -> tuple[Task, ...]:
    """45 train and 10 test tasks of distinct goals of two decimals, so that a description can state them exactly."""
    axis = np.arange(-round(100 * FARTHEST), round(100 * FARTHEST) + 1)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid[np.hypot(*grid.T) <= 100 * FARTHEST]
    goals = np.random.default_rng(TASK_SEED).choice(grid, TRAIN_TASKS + TEST_TASKS, replace=False) / 100
    names = [("train", i) for i in range(TRAIN_TASKS)] + [("test", i) for i in range(TEST_TASKS)]
    return tuple(
        Task(f"{split}-{i:02d}", split, {"goal_x": float(x), "goal_y": float(y)})
        for (split, i), (x, y) in zip(names, goals, strict=True)
    )


def way(observation: jax.Array, parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The direction `[2]` to the goal and the distance `[1]`; at the goal itself no direction."""
    missing = parameters - observation[:2]
    distance = jnp.linalg.norm(missing, keepdims=True)
    return missing / jnp.maximum(distance, 1e-6), distance


def see(observation: jax.Array, parameters: jax.Array) -> jax.Array:
    """What the expert sees, `[30]`: the ant as it is to go to the goal, and how far that is."""
    direction, distance = way(observation, parameters)
    return jnp.concatenate([towards(direction, observation[2:]), distance])


def act(observation: jax.Array, parameters: jax.Array, action: jax.Array) -> jax.Array:
    """The torques `[8]` of the ant, of those of the expert."""
    return act_towards(way(observation, parameters)[0], observation[2:], action)


FRAME = Frame(see, act)


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task."""
    return {"x": Quantity(parameters["goal_x"]), "y": Quantity(parameters["goal_y"])}


@functools.cache
def ant_goal() -> TaskFamily:
    """The family, as the registry hands it out."""
    return TaskFamily(
        name=NAME,
        horizon=HORIZON,
        observation_low=(-np.inf,) * (2 + BODY),
        observation_high=(np.inf,) * (2 + BODY),
        action_low=(-1.0,) * 8,
        action_high=(1.0,) * 8,
        parameter_names=("goal_x", "goal_y"),
        make_env=make_env,
        tasks=make_tasks,
        behaviour=functools.partial(expert_behaviour, NAME, frame=FRAME),
        wordings=as_wordings(point_wordings()),
        phrases=phrases,
        reference_episodes=20,
        view=PlaneView(position=(0, 1), goal=("goal_x", "goal_y")),
        expert=expert_file(NAME),
        frame=FRAME,
    )
