"""point_robot: a point on a plane that has to reach a goal it cannot see; only the prompt tells where it is.

The usual small benchmark of multi-task and meta reinforcement learning: start at the origin, goals uniform in
[-1, 1]^2, 20 steps of at most 0.1 along each axis, reward minus the distance to the goal.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.environment import State, TaskEnv
from llmdpd_jax.tasks.family import QUALITIES, Behaviour, PlaneView, Task, TaskFamily
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


@struct.dataclass
class Traits:
    """What one behaviour episode keeps throughout."""

    error: jax.Array  # [2] where it takes the goal to be, relative to the goal
    gain: jax.Array  # share of the expert's step it makes towards there
    noise: jax.Array  # half-width of the uniform noise on each action


def act(traits: Traits, parameters: jax.Array, observation: jax.Array, key: jax.Array) -> jax.Array:
    """A step towards where the episode takes the goal to be, plus noise. `[2]`, not yet clipped."""
    towards = jnp.clip((parameters + traits.error - observation) / STEP, -1.0, 1.0)
    return traits.gain * towards + traits.noise * jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)


def _draw_random(key, progress, parameters):
    return Traits(error=jnp.zeros(2), gain=jnp.zeros(()), noise=jnp.ones(()))


def _draw_expert(key, progress, parameters):
    return Traits(error=jnp.zeros(2), gain=jnp.ones(()), noise=jnp.zeros(()))


def _draw_medium(key, progress, parameters):
    error_key, gain_key = jax.random.split(key)
    return Traits(
        error=0.4 * jax.random.normal(error_key, (2,)),
        gain=jax.random.uniform(gain_key, minval=0.1, maxval=0.6),
        noise=jnp.asarray(0.8),
    )


def _draw_mixed(key, progress, parameters):
    """A learner's log: uniformly random at first, the expert at last."""
    return Traits(error=(1 - progress) * 0.6 * jax.random.normal(key, (2,)), gain=progress, noise=1 - progress)


def _draw_replay(key, progress, parameters):
    """The first half of that log."""
    return _draw_mixed(key, progress / 2, parameters)


def behaviour(quality: str) -> Behaviour:
    """The policy of that quality. Raises `UserError` for an unknown one."""
    draws = {
        "random": _draw_random,
        "replay": _draw_replay,
        "medium": _draw_medium,
        "mixed": _draw_mixed,
        "expert": _draw_expert,
    }
    if quality not in draws:
        raise UserError(f"unknown quality {quality!r} (known: {', '.join(QUALITIES)})")
    return Behaviour(draws[quality], act)


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
        behaviour=behaviour,
        wordings=(
            *(Wording(f"train_{i}", template, held_out=False) for i, template in enumerate(point_wordings().train)),
            *(Wording(name, template, held_out=True) for name, template in HELD_OUT_TEMPLATES.items()),
        ),
        phrases=phrases,
        reference_episodes=500,
        view=PlaneView(position=(0, 1), goal=("goal_x", "goal_y")),
    )
