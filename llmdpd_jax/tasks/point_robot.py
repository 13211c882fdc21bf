"""point_robot: a point on a plane that has to reach a goal it cannot see; only the prompt tells where it is.

The usual small benchmark of multi-task and meta reinforcement learning: start at the origin, goals uniform in
[-1, 1]^2, 20 steps of at most 0.1 along each axis, reward minus the distance to the goal.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.tasks.controllers import inaccurate_behaviour
from llmdpd_jax.tasks.environment import State, TaskEnv
from llmdpd_jax.tasks.family import PlaneView, Task, TaskFamily
from llmdpd_jax.tasks.point_robot_wordings import HELD_OUT_TEMPLATES
from llmdpd_jax.tasks.wording import Quantity, Wording, decimal, short, side, spelled
from llmdpd_jax.tasks.wordings.point import point_wordings

HORIZON = 20
STEP = 0.1  # displacement per unit of action
TRAIN_TASKS, TEST_TASKS = 45, 15
TASK_SEED = 2509
REACH = HORIZON * STEP + 0.1  # farthest coordinate, with room for rounding


class PointRobot(TaskEnv):
    """Observation: position (x, y). Action: displacement / 0.1, clipped to [-1, 1]^2. Parameters: the goal (x, y).

    The reward is minus the Euclidean distance to the goal after the move. Nothing ends an episode.
    """

    def reset(self, rng: jax.Array) -> State:
        """Starts an episode with a goal drawn uniformly from [-1, 1]^2."""
        goal_key, key = jax.random.split(rng)
        return self.reset_task(key, jax.random.uniform(goal_key, (2,), minval=-1.0, maxval=1.0))

    def reset_task(self, key: jax.Array, parameters: jax.Array) -> State:
        """Starts at the origin with goal `parameters` `[2]`; the start is not random, so the key goes unused."""
        del key
        zero = jnp.zeros(())
        return State(
            pipeline_state=None,
            obs=jnp.zeros(2),
            reward=zero,
            done=zero,
            info={"parameters": jnp.asarray(parameters, jnp.float32)},
        )

    def step(self, state: State, action: jax.Array) -> State:
        """Moves by 0.1 x the clipped action `[2]`."""
        position = state.obs + STEP * jnp.clip(action, -1.0, 1.0)
        reward = -jnp.linalg.norm(position - state.info["parameters"])
        return state.replace(obs=position, reward=reward)

    @property
    def observation_size(self) -> int:
        return 2

    @property
    def action_size(self) -> int:
        return 2


def make_tasks() -> tuple[Task, ...]:
    """45 train and 15 test tasks; goals have two decimals, so that a description can state them exactly."""
    goals = np.round(np.random.default_rng(TASK_SEED).uniform(-1, 1, (TRAIN_TASKS + TEST_TASKS, 2)), 2) + 0.0
    names = [("train", i) for i in range(TRAIN_TASKS)] + [("test", i) for i in range(TEST_TASKS)]
    return tuple(
        Task(f"{split}-{i:02d}", split, {"goal_x": float(x), "goal_y": float(y)})
        for (split, i), (x, y) in zip(names, goals, strict=True)
    )


def step_towards(goal: jax.Array, observation: jax.Array) -> jax.Array:
    """The expert's action `[2]`: straight to the goal, along each axis as fast as it goes."""
    return jnp.clip((goal - observation) / STEP, -1.0, 1.0)


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates below stand for, for one task."""
    x, y = parameters["goal_x"], parameters["goal_y"]
    return {
        "x": Quantity(x),
        "y": Quantity(y),
        "x_plus": decimal(x, plus=True),
        "y_plus": decimal(y, plus=True),
        "x_long": decimal(x, 3),
        "y_long": decimal(y, 3),
        "x_short": short(x),
        "y_short": short(y),
        "x_words": spelled(x),
        "y_words": spelled(y),
        # Sizes, and the words that stand for their signs.
        "x_size": decimal(abs(x)),
        "y_size": decimal(abs(y)),
        "x_size_words": spelled(abs(x)),
        "y_size_words": spelled(abs(y)),
        "right": side(x, "right", "left"),
        "up": side(y, "up", "down"),
        "east": side(x, "east", "west"),
        "north": side(y, "north", "south"),
        "above": side(y, "above", "below"),
    }


@functools.cache
def point_robot() -> TaskFamily:
    """The family, as the registry hands it out."""
    return TaskFamily(
        name="point_robot",
        horizon=HORIZON,
        observation_low=(-REACH, -REACH),
        observation_high=(REACH, REACH),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        parameter_names=("goal_x", "goal_y"),
        make_env=PointRobot,
        tasks=make_tasks,
        behaviour=functools.partial(inaccurate_behaviour, control=step_towards, error=0.6),
        wordings=(
            *(Wording(f"train_{i}", template, held_out=False) for i, template in enumerate(point_wordings().train)),
            *(Wording(name, template, held_out=True) for name, template in HELD_OUT_TEMPLATES.items()),
        ),
        phrases=phrases,
        reference_episodes=500,
        view=PlaneView(position=(0, 1), goal=("goal_x", "goal_y")),
    )
