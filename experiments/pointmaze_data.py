"""Point-maze data made the way D4RL made them, a task for each goal: a point with mass finds its way by waypoints.

    pip install -e ".[d4rl]"
    python experiments/pointmaze_data.py --maze=medium --out=data/pointmaze
    llmdpd train --config=configs/minari.py --config.data.manifest=data/pointmaze/tasks.json --out=runs/pointmaze
    llmdpd evaluate runs/pointmaze

Every free cell of the maze is the goal of a task, every fourth of a test task. A task's episodes go into a Minari data
set of its own, which holds the environment and the returns of a random policy and of the controller that knows the
goal: evaluation needs nothing else. Reward is 1 for each step near the goal. The goal is no part of what the policy
sees: the prompt tells it.
"""

import argparse
import warnings
from collections import deque
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import minari
import numpy as np
from gymnasium_robotics.envs.maze import maps

from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.tasks.manifest import FILE_NAME, Manifest, TaskEntry, save_manifest

MAZES = {"umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE}
STEPS = {"umaze": 150, "medium": 300, "large": 400}  # of an episode; the way across takes about half of them
GOAL_SHARE = 0.5  # of logged episodes that head for the goal; others head for any cell
NOISE = 0.5  # standard deviation, added to the controller's actions as D4RL did
GAIN, DAMPING = 10.0, 1.0  # of the controller, D4RL's
REFERENCE_EPISODES = 20
WORDINGS = (
    "Go to ({x}, {y})",
    "Reach x = {x}, y = {y} and stay there",
    "The goal lies at y = {y}, x = {x}",
    "Find the way through the maze to the point ({x}, {y})",
    "Be at height {y} and {x} across as long as you can",
    "target: x {x}, y {y}",
)
HELD_OUT_WORDINGS = ("Walk to the cell whose centre is at ({x}, {y})", "y is to become {y} and x {x}")

Cell = tuple[int, int]  # row and column


def way_to(goal: Cell, maze_map: list[list]) -> dict[Cell, Cell]:
    """The next cell on a shortest way to the goal, from every cell that one can come from (breadth-first search)."""
    following, frontier = {goal: goal}, deque([goal])
    while frontier:
        row, column = cell = frontier.popleft()
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if maze_map[near[0]][near[1]] != 1 and near not in following:
                following[near] = cell
                frontier.append(near)
    return following


def steer(env: gym.Env, following: dict[Cell, Cell], end: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The action [2] towards the next cell's centre, or in the last cell towards `end` [2]; `seen` [4] is an
    observation, position and velocity."""
    maze = env.unwrapped.maze
    cell = tuple(maze.cell_xy_to_rowcol(seen[:2]).tolist())
    aim = end if following[cell] == cell else maze.cell_rowcol_to_xy(following[cell])
    return np.clip(GAIN * (aim - seen[:2]) - DAMPING * seen[2:], -1, 1).astype(np.float32)


def run_episode(env: gym.Env, act, seed: int) -> float:
    """The return of one episode; `act(observation of the goal environment) -> action`."""
    observation, _ = env.reset(seed=seed)
    total, truncated = 0.0, False
    while not truncated:
        observation, reward, _, truncated, _ = env.step(act(observation))
        total += reward
    return total


def log_task(dataset: str, env: gym.Env, goal: Cell, cells: list[Cell], episodes: int, seed: int) -> None:
    """Writes a task's Minari data set, in the place of one of the same id."""
    maze_map, maze = env.unwrapped.maze.maze_map, env.unwrapped.maze
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    to_goal = way_to(goal, maze_map)
    expert = [
        run_episode(env, lambda o: steer(env, to_goal, o["desired_goal"], o["observation"]), i)
        for i in range(REFERENCE_EPISODES)
    ]
    random = [run_episode(env, lambda _: env.action_space.sample(), i) for i in range(REFERENCE_EPISODES)]

    collector = minari.DataCollector(env)
    for i in range(episodes):
        target = goal if rng.random() < GOAL_SHARE else cells[rng.integers(len(cells))]
        following, end = way_to(target, maze_map), maze.cell_rowcol_to_xy(target)

        def behave(observation, following=following, end=end):
            action = steer(env, following, end, observation["observation"])
            return np.clip(action + NOISE * rng.standard_normal(2), -1, 1).astype(np.float32)

        run_episode(collector, behave, REFERENCE_EPISODES + i)
    if dataset in minari.list_local_datasets():
        minari.delete_dataset(dataset)
    with warnings.catch_warnings(action="ignore"):  # Minari would like an author and more
        collector.create_dataset(
            dataset,
            algorithm_name="waypoint controller",
            ref_min_score=float(np.mean(random)),
            ref_max_score=float(np.mean(expert)),
            requirements=["gymnasium-robotics"],
        )


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maze", choices=MAZES, default="medium")
    parser.add_argument("--episodes", type=int, default=60, help="logged per task (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/pointmaze"), help="folder of tasks.json")
    options = parser.parse_args(arguments)

    gym.register_envs(gymnasium_robotics)
    plain, tasks = MAZES[options.maze], []
    cells = [(i, j) for i, row in enumerate(plain) for j, content in enumerate(row) if content != 1]
    order = np.random.default_rng(0).permutation(len(cells)).tolist()
    with progress_bar() as bar:
        for i in bar.track(range(len(cells)), description="logging tasks"):
            row, column = goal = cells[order[i]]
            maze_map = [list(line) for line in plain]
            maze_map[row][column] = maps.GOAL
            env = gym.make("PointMaze_UMaze-v3", maze_map=maze_map, max_episode_steps=STEPS[options.maze])
            dataset = f"pointmaze/{options.maze}-goal-{row}-{column}-v0"
            log_task(dataset, env, goal, cells, options.episodes, seed=i)
            x, y = env.unwrapped.maze.cell_rowcol_to_xy(goal).tolist()
            seen, held_out = (
                tuple(w.format(x=f"{x:g}", y=f"{y:g}") for w in each) for each in (WORDINGS, HELD_OUT_WORDINGS)
            )
            split = "test" if i % 4 == 3 else "train"
            tasks.append(TaskEntry(f"goal-{row}-{column}", split, dataset, seen, held_out, {"x": x, "y": y}))
            env.close()
    manifest = save_manifest(Manifest(tuple(tasks), f"pointmaze-{options.maze}"), options.out / FILE_NAME)
    print(f"{manifest.path}: {len(tasks)} tasks x {options.episodes} episodes")
    return manifest.path


if __name__ == "__main__":
    main()
