"""maze: a point mass among walls that has to reach a goal it cannot see; only the prompt tells where it is.

Layouts and dense reward are those of D4RL's maze2d (Fu et al. 2020, arXiv 2004.07219): exp(-distance to the goal) at
every step. Cells are one metre wide and coordinates count from the maze's middle. Episodes start at rest anywhere in
the maze. Test goals lie in cells that no train goal lies in.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from llmdpd_jax.tasks.controllers import mistaken_behaviour
from llmdpd_jax.tasks.environment import State, TaskEnv
from llmdpd_jax.tasks.family import Behaviour, PlaneView, Task, TaskFamily
from llmdpd_jax.tasks.maze_wordings import maze_wordings, names
from llmdpd_jax.tasks.wording import Quantity

NAME = "maze"
HORIZON = 100
DT = 0.2  # seconds of a step
DRAG, PUSH = 0.4, 0.8  # share of the velocity lost in a step; m/s that a full action adds
TOP_SPEED = PUSH / DRAG  # m/s along each axis
RADIUS = 0.1  # m, half the point's width
SPREAD = 0.3  # m, how far from the middle of a cell starts and goals lie at most, along each axis
TASK_SEED = 2611
GOALS = {"umaze": (8, 2), "medium": (18, 5), "large": (24, 8)}  # of train and of test tasks

_PICTURES = {
    "umaze": """
        #####
        #   #
        ### #
        #   #
        #####""",
    "medium": """
        ########
        #  ##  #
        #  #   #
        ##   ###
        #  #   #
        # #  # #
        #   #  #
        ########""",
    "large": """
        ############
        #    #     #
        # ## # # # #
        #      #   #
        # #### ### #
        #  # #     #
        ## # # # ###
        #  #   #   #
        ############""",
}
LAYOUTS = tuple(_PICTURES)  # a task's parameter "layout" is the place in this list
_ROWS = {name: [line.strip() for line in text.strip().splitlines()] for name, text in _PICTURES.items()}
SHAPES = np.array([(len(rows), len(rows[0])) for rows in _ROWS.values()])  # [L, 2]
WALLS = np.ones((len(LAYOUTS), *SHAPES.max(0)), bool)  # [L, rows, columns]; what lies outside is wall
for _walls, _rows in zip(WALLS, _ROWS.values(), strict=True):
    _walls[: len(_rows), : len(_rows[0])] = [[symbol == "#" for symbol in row] for row in _rows]


# --- geometry --------------------------------------------------------------------------------------------------------


def grid_place(layout: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row and column, as fractions, of a position (x, y) `[2]`; whole numbers are the middles of cells."""
    height, width = jnp.asarray(SHAPES)[layout]
    return (height - 1) / 2 - position[1], (width - 1) / 2 + position[0]


def middle(layout: jax.Array, cell: jax.Array) -> jax.Array:
    """The position `[2]` of the middle of a cell, numbered row by row over the padded grid."""
    height, width = jnp.asarray(SHAPES)[layout]
    row, column = jnp.divmod(cell, WALLS.shape[2])
    return jnp.stack([column - (width - 1) / 2, (height - 1) / 2 - row])


def cell_of(layout: jax.Array, position: jax.Array) -> jax.Array:
    """The number of the cell that a position `[2]` lies in."""
    row, column = (jnp.round(place).astype(jnp.int32) for place in grid_place(layout, position))
    return row * WALLS.shape[2] + column


def is_blocked(layout: jax.Array, position: jax.Array) -> jax.Array:
    """Whether the point at a position `[2]` would stick in a wall."""
    corners = position + RADIUS * jnp.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    cells = jax.vmap(lambda corner: cell_of(layout, corner))(corners)
    return jnp.asarray(WALLS)[layout].reshape(-1)[cells].any()


def ranges(layout: jax.Array, position: jax.Array) -> jax.Array:
    """How far the walls are to the right, to the left, above and below `[4]`, in metres."""
    row, column = grid_place(layout, position)
    walls = jnp.asarray(WALLS)[layout]

    def nearest(line: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        cells = jnp.arange(len(line))
        after = jnp.where(line & (cells > place), cells - 0.5 - place, jnp.inf).min()
        before = jnp.where(line & (cells < place), place - cells - 0.5, jnp.inf).min()
        return after, before

    right, left = nearest(walls[jnp.round(row).astype(jnp.int32)], column)
    down, up = nearest(walls[:, jnp.round(column).astype(jnp.int32)], row)
    return jnp.stack([right, left, up, down])


def draw_position(key: jax.Array, layout: jax.Array) -> jax.Array:
    """A position `[2]` in a free cell drawn at random, at most SPREAD from its middle."""
    cell_key, key = jax.random.split(key)
    free = ~jnp.asarray(WALLS)[layout].reshape(-1)
    cell = jax.random.categorical(cell_key, jnp.where(free, 0.0, -jnp.inf))
    return middle(layout, cell) + jax.random.uniform(key, (2,), minval=-SPREAD, maxval=SPREAD)


@functools.cache
def next_cells() -> np.ndarray:
    """For each layout, goal cell and cell the next cell on a shortest way `[L, cells, cells]`."""
    rows, columns = WALLS.shape[1:]
    cells = np.arange(rows * columns).reshape(rows, columns)
    tables = []
    for walls in WALLS:
        sides = [(cells[:, :-1], cells[:, 1:]), (cells[:-1], cells[1:])]
        pairs = np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in sides], axis=1)
        pairs = pairs[:, ~walls.ravel()[pairs].any(0)]
        graph = coo_array((np.ones(pairs.shape[1]), pairs), shape=(cells.size, cells.size))
        before = shortest_path(graph, directed=False, unweighted=True, return_predecessors=True)[1]
        tables.append(np.where(before < 0, cells.ravel(), before))  # at the goal, or no way: stay
    return np.stack(tables).astype(np.int32)


# --- motion ----------------------------------------------------------------------------------------------------------


def advance(
    position: jax.Array, velocity: jax.Array, action: jax.Array, blocked: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Position and velocity `[2]` after a step of DT; an action `[2]` is clipped to [-1, 1].

    blocked: whether the point would stick in a wall at a position `[2]`. Such a move along one axis is not made, and
    ends the velocity along it.
    """
    velocity = (1 - DRAG) * velocity + PUSH * jnp.clip(action, -1.0, 1.0)
    for axis in range(2):
        moved = position.at[axis].add(DT * velocity[axis])
        free = ~blocked(moved)
        position = jnp.where(free, moved, position)
        velocity = velocity.at[axis].multiply(free)
    return position, velocity


def push_towards(target: jax.Array, position: jax.Array, velocity: jax.Array) -> jax.Array:
    """The action `[2]` that reaches a target `[2]` in a step, or goes there as fast as it goes."""
    wanted = jnp.clip((target - position) / DT, -TOP_SPEED, TOP_SPEED)
    return jnp.clip((wanted - (1 - DRAG) * velocity) / PUSH, -1.0, 1.0)


# --- environment -----------------------------------------------------------------------------------------------------


class Maze(TaskEnv):
    """Observation: position (x, y), velocity, distance to the walls right, left, above, below. Action: a push `[2]`.

    Parameters: number of the layout, goal (x, y). The reward is exp(-distance to the goal) after the move; nothing ends
    an episode. A wall stops the motion into it, not along it.
    """

    def reset(self, rng: jax.Array) -> State:
        """Starts an episode of a random layout and goal."""
        layout_key, goal_key, key = jax.random.split(rng, 3)
        layout = jax.random.randint(layout_key, (), 0, len(LAYOUTS))
        return self.reset_task(key, jnp.concatenate([layout[None], draw_position(goal_key, layout)]))

    def reset_task(self, key: jax.Array, parameters: jax.Array) -> State:
        """Starts at rest anywhere in the maze with `parameters` (layout, goal_x, goal_y)."""
        parameters = jnp.asarray(parameters, jnp.float32)
        layout = parameters[0].astype(jnp.int32)
        obs = self._observe(layout, draw_position(key, layout), jnp.zeros(2))
        zero = jnp.zeros(())
        return State(pipeline_state=None, obs=obs, reward=zero, done=zero, info={"parameters": parameters})

    def step(self, state: State, action: jax.Array) -> State:
        """One step of DT; actions `[2]` are clipped to [-1, 1]."""
        layout = state.info["parameters"][0].astype(jnp.int32)
        blocked = functools.partial(is_blocked, layout)
        position, velocity = advance(state.obs[:2], state.obs[2:4], action, blocked)
        reward = jnp.exp(-jnp.linalg.norm(position - state.info["parameters"][1:]))
        return state.replace(obs=self._observe(layout, position, velocity), reward=reward)

    @staticmethod
    def _observe(layout: jax.Array, position: jax.Array, velocity: jax.Array) -> jax.Array:
        return jnp.concatenate([position, velocity, ranges(layout, position)])

    @property
    def observation_size(self) -> int:
        return 8

    @property
    def action_size(self) -> int:
        return 2


# --- behaviour -------------------------------------------------------------------------------------------------------


def control(parameters: jax.Array, observation: jax.Array) -> jax.Array:
    """The expert's push `[2]`: from cell to cell on a shortest way to the goal, as fast as it goes."""
    layout, goal = parameters[0].astype(jnp.int32), parameters[1:]
    position, velocity = observation[:2], observation[2:4]
    here, there = cell_of(layout, position), cell_of(layout, goal)
    waypoint = jnp.where(here == there, goal, middle(layout, jnp.asarray(next_cells())[layout, there, here]))
    return push_towards(waypoint, position, velocity)


def elsewhere(key: jax.Array, parameters: jax.Array) -> jax.Array:
    """The parameters `[3]` with a goal drawn anywhere in the maze."""
    return jnp.concatenate([parameters[:1], draw_position(key, parameters[0].astype(jnp.int32))])


def behaviour(quality: str) -> Behaviour:
    """The policy of that quality: the worse, the more often it heads for other places. Raises `UserError`."""
    return mistaken_behaviour(quality, control, elsewhere)


# --- tasks -----------------------------------------------------------------------------------------------------------


def make_tasks() -> tuple[Task, ...]:
    """50 train and 15 test tasks over all layouts; goals have two decimals, so that a description can state them.

    Of each layout, cells are dealt to the splits first; then goals go round the cells of their split.
    """
    rng = np.random.default_rng(TASK_SEED)
    goals = {"train": [], "test": []}
    for layout, (train, test) in enumerate(GOALS.values()):
        free = rng.permutation(np.flatnonzero(~WALLS[layout].ravel()))
        for split, cells, count in (("test", free[:test], test), ("train", free[test:], train)):
            for i in range(count):
                height, width = SHAPES[layout]
                row, column = divmod(int(cells[i % len(cells)]), WALLS.shape[2])
                centre = np.array([column - (width - 1) / 2, (height - 1) / 2 - row])
                goals[split].append((layout, *(np.round(centre + rng.uniform(-SPREAD, SPREAD, 2), 2) + 0.0)))
    return tuple(
        Task(f"{split}-{i:02d}", split, {"layout": float(layout), "goal_x": float(x), "goal_y": float(y)})
        for split in ("train", "test")
        for i, (layout, x, y) in enumerate(goals[split])
    )


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task."""
    return {
        "x": Quantity(parameters["goal_x"]),
        "y": Quantity(parameters["goal_y"]),
        **names(LAYOUTS[int(parameters["layout"])]),
    }


def wall_squares(parameters: Mapping[str, float]) -> np.ndarray:
    """The cells that are walls `[W, 4]`: x and y of the lower left corner, width, height. Padding is not."""
    layout = int(parameters["layout"])
    height, width = SHAPES[layout]
    rows, columns = np.nonzero(WALLS[layout, :height, :width])
    ones = np.ones(len(rows))
    return np.stack([columns - width / 2, height / 2 - rows - 1, ones, ones], axis=1)


@functools.cache
def maze() -> TaskFamily:
    """The family, as the registry hands it out."""
    height, width = SHAPES.max(0)
    return TaskFamily(
        name=NAME,
        horizon=HORIZON,
        observation_low=(-width / 2, -height / 2, -TOP_SPEED, -TOP_SPEED, 0.0, 0.0, 0.0, 0.0),
        observation_high=(width / 2, height / 2, TOP_SPEED, TOP_SPEED, width, width, height, height),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        parameter_names=("layout", "goal_x", "goal_y"),
        make_env=Maze,
        tasks=make_tasks,
        behaviour=behaviour,
        wordings=maze_wordings(),
        phrases=phrases,
        reference_episodes=200,
        view=PlaneView(position=(0, 1), goal=("goal_x", "goal_y"), walls=wall_squares),
    )
