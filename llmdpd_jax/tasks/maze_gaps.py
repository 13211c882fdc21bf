"""maze_gaps: a room that two walls divide; where the gap in each is, and where the goal is, only the prompt tells.

Every task is a maze of its own, so test tasks are unseen mazes and unseen goals at once. Nothing of the walls is
observed: who is not told runs into them. Motion and reward are those of `maze` (D4RL's dense maze2d, Fu et al. 2020,
arXiv 2004.07219): exp(-distance to the goal) at every step. Episodes start at rest left of both walls, and the goal
lies right of them, so that a good episode shows both gaps.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.tasks.controllers import mistaken_behaviour
from llmdpd_jax.tasks.environment import State, TaskEnv
from llmdpd_jax.tasks.family import Behaviour, PlaneView, Task, TaskFamily
from llmdpd_jax.tasks.maze import RADIUS, TOP_SPEED, advance, push_towards
from llmdpd_jax.tasks.wording import Quantity, as_wordings
from llmdpd_jax.tasks.wordings.gaps import gap_wordings

NAME = "maze_gaps"
HORIZON = 40
ROOM = np.array([3.0, 2.0])  # m, half its width and height; coordinates count from its middle
WALLS = np.array([-1.0, 1.0])  # m, x of the middle of each wall
HALF_THICK = 0.15  # m; a step moves at most 0.4 m, which is less than wall and point are thick
HALF_GAP = 0.3  # m
FARTHEST_GAP = 1.5  # m from the middle
STARTS = ((-2.8, -1.7), (-1.4, 1.7))  # m, corners of where episodes start
GOALS = ((1.5, -1.7), (2.7, 1.7))  # ... and of where goals lie
TRAIN_TASKS, TEST_TASKS = 60, 15
TASK_SEED = 2611

# Of the parameters [4].
LOW = np.array([-FARTHEST_GAP, -FARTHEST_GAP, *GOALS[0]])
HIGH = np.array([FARTHEST_GAP, FARTHEST_GAP, *GOALS[1]])


def is_blocked(gaps: jax.Array, position: jax.Array) -> jax.Array:
    """Whether the point at a position `[2]` would stick in a wall; gaps `[2]` are the y of their middles."""
    outside = jnp.any(jnp.abs(position) > ROOM - RADIUS)
    in_wall = jnp.abs(position[0] - WALLS) < HALF_THICK + RADIUS
    return outside | jnp.any(in_wall & (jnp.abs(position[1] - gaps) > HALF_GAP - RADIUS))


class MazeGaps(TaskEnv):
    """Observation: position (x, y) and velocity. Action: a push `[2]`.

    Parameters: y of the gap in the left wall, y of that in the right wall, goal (x, y). The reward is
    exp(-distance to the goal) after the move; nothing ends an episode. A wall stops the motion into it, not along it.
    """

    def reset(self, rng: jax.Array) -> State:
        """Starts an episode of a random task."""
        key_task, key = jax.random.split(rng)
        return self.reset_task(key, jax.random.uniform(key_task, (4,), minval=LOW, maxval=HIGH))

    def reset_task(self, key: jax.Array, parameters: jax.Array) -> State:
        """Starts at rest left of both walls with `parameters` (left gap, right gap, goal_x, goal_y)."""
        low, high = jnp.array(STARTS)
        position = jax.random.uniform(key, (2,), minval=low, maxval=high)
        obs, zero = jnp.concatenate([position, jnp.zeros(2)]), jnp.zeros(())
        info = {"parameters": jnp.asarray(parameters, jnp.float32)}
        return State(pipeline_state=None, obs=obs, reward=zero, done=zero, info=info)

    def step(self, state: State, action: jax.Array) -> State:
        """One step of `maze.DT`; actions `[2]` are clipped to [-1, 1]."""
        gaps, goal = jnp.split(state.info["parameters"], 2)
        blocked = functools.partial(is_blocked, gaps)
        position, velocity = advance(state.obs[:2], state.obs[2:], action, blocked)
        reward = jnp.exp(-jnp.linalg.norm(position - goal))
        return state.replace(obs=jnp.concatenate([position, velocity]), reward=reward)

    @property
    def observation_size(self) -> int:
        return 4

    @property
    def action_size(self) -> int:
        return 2


# --- behaviour -------------------------------------------------------------------------------------------------------


def waypoint(parameters: jax.Array, position: jax.Array) -> jax.Array:
    """Where `[2]` to head for next: through the gap of the next wall if it lies straight ahead, else to in front of it,
    and right of both walls to the goal."""
    crossed = jnp.sum(position[0] > WALLS + HALF_THICK + RADIUS)
    wall = jnp.minimum(crossed, 1)
    middle, gap, beside = jnp.asarray(WALLS)[wall], parameters[wall], HALF_THICK + 2 * RADIUS
    in_line = jnp.abs(position[1] - gap) < HALF_GAP - RADIUS
    inside = jnp.abs(position[0] - middle) < HALF_THICK + RADIUS  # so it is in the gap, and can only go on
    door = jnp.stack([middle + jnp.where(in_line | inside, 2.0, -1.0) * beside, gap])
    return jnp.where(crossed == len(WALLS), parameters[2:], door)


def control(parameters: jax.Array, observation: jax.Array) -> jax.Array:
    """The expert's push `[2]`: through both gaps to the goal, as fast as it goes."""
    return push_towards(waypoint(parameters, observation[:2]), observation[:2], observation[2:])


def another(key: jax.Array, parameters: jax.Array) -> jax.Array:
    """The parameters `[4]` of some other maze."""
    return jax.random.uniform(key, parameters.shape, minval=LOW, maxval=HIGH)


def behaviour(quality: str) -> Behaviour:
    """The policy of that quality: the worse, the more often it takes the maze for another. Raises `UserError`."""
    return mistaken_behaviour(quality, control, another)


# --- tasks -----------------------------------------------------------------------------------------------------------

PARAMETERS = ("left_gap", "right_gap", "goal_x", "goal_y")


def make_tasks() -> tuple[Task, ...]:
    """60 train and 15 test tasks, of two decimals each, so that a description can state them."""
    values = np.random.default_rng(TASK_SEED).uniform(LOW, HIGH, (TRAIN_TASKS + TEST_TASKS, len(PARAMETERS)))
    names = [("train", i) for i in range(TRAIN_TASKS)] + [("test", i) for i in range(TEST_TASKS)]
    return tuple(
        Task(f"{split}-{i:02d}", split, {name: float(x) for name, x in zip(PARAMETERS, row, strict=True)})
        for (split, i), row in zip(names, np.round(values, 2) + 0.0, strict=True)
    )


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task."""
    return {field: Quantity(parameters[name]) for field, name in zip("lrxy", PARAMETERS, strict=True)}


def wall_rectangles(parameters: Mapping[str, float]) -> np.ndarray:
    """The walls `[8, 4]`: x and y of the lower left corner, width, height. Four around the room, two of each wall."""
    width, height = 2 * ROOM
    thick = 2 * HALF_THICK
    rectangles = [
        (-ROOM[0] - thick, -ROOM[1] - thick, width + 2 * thick, thick),
        (-ROOM[0] - thick, ROOM[1], width + 2 * thick, thick),
        (-ROOM[0] - thick, -ROOM[1], thick, height),
        (ROOM[0], -ROOM[1], thick, height),
    ]
    for x, gap in zip(WALLS, (parameters["left_gap"], parameters["right_gap"]), strict=True):
        below, above = gap - HALF_GAP, gap + HALF_GAP
        rectangles.append((x - HALF_THICK, -ROOM[1], thick, below + ROOM[1]))
        rectangles.append((x - HALF_THICK, above, thick, ROOM[1] - above))
    return np.array(rectangles)


@functools.cache
def maze_gaps() -> TaskFamily:
    """The family, as the registry hands it out."""
    return TaskFamily(
        name=NAME,
        horizon=HORIZON,
        observation_low=(*-ROOM, -TOP_SPEED, -TOP_SPEED),
        observation_high=(*ROOM, TOP_SPEED, TOP_SPEED),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        parameter_names=PARAMETERS,
        make_env=MazeGaps,
        tasks=make_tasks,
        behaviour=behaviour,
        wordings=as_wordings(gap_wordings()),
        phrases=phrases,
        reference_episodes=200,
        view=PlaneView(position=(0, 1), goal=("goal_x", "goal_y"), walls=wall_rectangles),
    )
