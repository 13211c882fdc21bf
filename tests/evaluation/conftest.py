"""Made-up results and rollouts of a point robot: origin to goal in steps of at most 0.1 per axis, horizon 20."""

import numpy as np
import pytest

from llmdpd_jax.evaluation.figures import Rollouts
from llmdpd_jax.evaluation.results import PROMPTS, Results, Row

HORIZON = 20


def path_to(aim: np.ndarray) -> np.ndarray:
    """[T + 1, 2] positions on the way from the origin to `aim`."""
    position, positions = np.zeros(2), [np.zeros(2)]
    for _ in range(HORIZON):
        position = position + 0.1 * np.clip((aim - position) / 0.1, -1, 1)
        positions.append(position)
    return np.stack(positions)


def make(tasks: int = 3, train_tasks: int = 4, seeds: int = 1) -> tuple[Results, Rollouts]:
    """An evaluation whose error shrinks from prompt to prompt."""
    generator = np.random.default_rng(0)
    goals = generator.uniform(-1, 1, (tasks + train_tasks, 2))
    spread = dict(zip(PROMPTS, (0.8, 0.1, 0.2, 0.05), strict=True))
    rows, observations = [], np.zeros((tasks, len(PROMPTS), 2, HORIZON + 1, 2), np.float32)
    for index, goal in enumerate(goals):
        split = "test" if index < tasks else "train"
        for column, prompt in enumerate(PROMPTS):
            for seed in range(seeds):
                paths = [path_to(goal + spread[prompt] * generator.normal(size=2)) for _ in range(2)]
                if split == "test" and seed == 0:
                    observations[index, column] = paths
                row = Row.scored(
                    returns=[-np.linalg.norm(path[1:] - goal, axis=-1).sum() for path in paths],
                    random=-20.0,
                    expert=-np.linalg.norm(path_to(goal)[1:] - goal, axis=-1).sum(),
                    success=[bool(np.linalg.norm(path[-1] - goal) < 0.1) for path in paths],
                    split=split,
                    prompt=prompt,
                    wording="seen",
                    sampler="ddim-5",
                    guidance={"text": 1.0, "trajectory": 1.5},
                    seed=seed,
                    task=f"{split}-{index:02d}",
                )
                rows.append(row)
    results = Results("point_robot", "runs/x/checkpoints/2000", "abc1234", "0f0f", "cpu", 12.5, tuple(rows))
    rollouts = Rollouts(
        observations=observations,
        tasks=tuple(f"test-{index:02d}" for index in range(tasks)),
        prompts=PROMPTS,
        descriptions=tuple(f"Navigate to position ({x:.2f}, {y:.2f})" for x, y in goals[:tasks]),
        plane=(0, 1),
        goals=goals[:tasks].astype(np.float32),
    )
    return results, rollouts


@pytest.fixture
def synthetic():
    """`synthetic(tasks=3, train_tasks=4, seeds=1) -> (Results, Rollouts)`"""
    return make
