"""Loads one split of a manifest into the device-resident store, and measures its statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.data.d4rl import read_d4rl
from llmdpd_jax.data.episodes import Episodes
from llmdpd_jax.data.minari_io import read_episodes
from llmdpd_jax.data.moments import Moments, measure, merge
from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.data.weighting import return_weights
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import Manifest, TaskEntry, TaskSplit, require_split
from llmdpd_jax.types import Statistics, Store

# A dimension that hardly varies is not blown up when divided by its deviation.
_SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class SplitData:
    """The logged data of one split. `store.task_id` counts `split.tasks` in order."""

    split: TaskSplit
    store: Store
    action_low: np.ndarray  # [A] of the action space; where that is unbounded, the least action logged in this split
    action_high: np.ndarray  # [A]

    @property
    def lengths(self) -> np.ndarray:
        """Number of actions of each episode [E]."""
        return self.store.lengths

    @property
    def task_id(self) -> np.ndarray:
        """Task of each episode [E]."""
        return self.store.task_id

    @property
    def returns(self) -> np.ndarray:
        """Sum of the rewards of each episode [E] float64."""
        return sum_rewards(self.store.rewards, self.lengths)

    def weighted(self, temperature: float) -> "SplitData":
        """The same data, of which the better episodes are cloned more (`return_weights`)."""
        weights = return_weights(self.returns, self.lengths, self.task_id, temperature)
        return replace(self, store=self.store.replace(weights=weights))

    @property
    def observation_size(self) -> int:
        return self.store.observations.shape[-1]

    @property
    def action_size(self) -> int:
        return self.store.actions.shape[-1]


def load_split(manifest: Manifest, split: str, progress: bool = True) -> SplitData:
    """Reads the data sets of one split of the manifest; those of other splits are not opened.

    Args:
        manifest: from `load_manifest`.
        split: "train" or "test". A train task needs two episodes (a prompt is another episode than the one trained
            on), a test task one.
        progress: shows a progress bar.

    Raises:
        UserError: the split is empty, a data set is unusable (see `read_episodes` and `read_d4rl`), has too few
            episodes, or its observations, actions or action bounds differ from those of the first task.
    """
    return load_tasks(require_split(manifest, split), progress)


def load_tasks(split: TaskSplit, progress: bool = True) -> SplitData:
    """As `load_split`, of a split that is already open."""
    loaded: list[Episodes] = []
    with progress_bar(progress) as bar:
        for task in bar.track(split.tasks, description=f"reading {split.split} tasks"):
            episodes = read_d4rl(task.dataset) if task.is_file else read_episodes(task.dataset)
            check_count(split, task, len(episodes.lengths))
            if loaded:
                check_same_spaces(loaded[0], episodes, task_name(split, task))
            loaded.append(episodes)
    return SplitData(split, build_store(loaded), *_action_bounds(loaded))


def statistics(data: SplitData) -> Statistics:
    """Means and standard deviations over all real steps of the train split, and the action bounds.

    A dimension that does not vary gets deviation 1, so that normalising leaves it near zero.

    Raises:
        UserError: `data` is not the train split, whose units alone may reach the networks.
    """
    if data.split.split != "train":
        raise UserError(f"{data.split.where}: statistics come from the train split only, not from {data.split.split!r}")
    observed, rewarded = _moments(data.store.observations, data.lengths + 1), _moments(data.store.rewards, data.lengths)
    return make_statistics(
        (observed.mean, observed.std), (rewarded.mean, rewarded.std), (data.action_low, data.action_high)
    )


def _moments(values: np.ndarray, lengths: np.ndarray, at_a_time: int = 1000) -> Moments:
    """Of the first steps [E] of each episode [E, T, ...]; some episodes at a time, since copies of all are large."""
    steps = np.arange(values.shape[1])
    blocks = [slice(first, first + at_a_time) for first in range(0, len(values), at_a_time)]
    return reduce(merge, (measure(values[block][steps < lengths[block, None]]) for block in blocks))


def make_statistics(
    observation: tuple[np.ndarray, np.ndarray],
    reward: tuple[np.ndarray, np.ndarray],
    action_bounds: tuple[np.ndarray, np.ndarray],
) -> Statistics:
    """Statistics of means and standard deviations as they were measured, and of least and largest actions."""

    def deviation(std: np.ndarray) -> np.ndarray:
        return np.where(std < _SMALLEST_STD, 1.0, std)

    return Statistics(
        observation_mean=jnp.asarray(observation[0], jnp.float32),
        observation_std=jnp.asarray(deviation(observation[1]), jnp.float32),
        action_low=jnp.asarray(action_bounds[0]),
        action_high=jnp.asarray(action_bounds[1]),
        reward_mean=jnp.asarray(reward[0], jnp.float32),
        reward_std=jnp.asarray(deviation(reward[1]), jnp.float32),
    )


def build_store(tasks: Sequence[Episodes]) -> Store:
    """The store of the given data sets, one per task, of NumPy arrays; shorter episodes are padded with zeros."""
    time = max(episodes.actions.shape[1] for episodes in tasks)
    counts = np.array([len(episodes.lengths) for episodes in tasks])

    def stack(name: str, extra: int) -> np.ndarray:
        arrays = [getattr(episodes, name) for episodes in tasks]
        stacked = np.zeros((sum(counts), time + extra, *arrays[0].shape[2:]), arrays[0].dtype)
        for array, end in zip(arrays, np.cumsum(counts), strict=True):
            stacked[end - len(array) : end, : array.shape[1]] = array
        return stacked

    rewards, lengths = stack("rewards", 0), np.concatenate([episodes.lengths for episodes in tasks])
    task_id = np.repeat(np.arange(len(tasks), dtype=np.int32), counts)
    return Store(
        observations=stack("observations", 1),
        actions=stack("actions", 0),
        rewards=rewards,
        terminations=stack("terminations", 0),
        lengths=lengths,
        task_id=task_id,
        task_episodes=best_first(sum_rewards(rewards, lengths), task_id)[task_rows(counts)],
        task_counts=counts.astype(np.int32),
    )


def sum_rewards(rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return [E] float64 of episodes of so many steps [E], of their rewards [E, T], padded with anything."""
    real = np.arange(rewards.shape[1]) < lengths[:, None]
    return np.sum(rewards, axis=1, where=real, dtype=np.float64)


def best_first(returns: np.ndarray, task_id: np.ndarray) -> np.ndarray:
    """Episodes [E] int32 task by task, those of a task by return, the highest first."""
    return np.lexsort((-returns, task_id)).astype(np.int32)


def divide_store(store: Store, parts: int) -> Store:
    """The store with a leading axis of parts [P, ...]: the episodes of every task are dealt out in turn.

    NumPy arrays, so that each device can be handed no more than its own parts. Episodes of a part are padded with empty
    ones to as many as the largest has.

    Raises:
        UserError: a task has too few episodes for every part to hold two of it (a prompt is another episode than the
            one trained on).
    """
    if parts == 1:
        return jax.tree.map(lambda x: x[None], store)
    fewest = int(store.task_counts.min())
    if fewest < 2 * parts:
        task = int(store.task_counts.argmin())
        raise UserError(
            f"data.parts: {parts} parts need {2 * parts} episodes of every task; task {task} has {fewest}. Choose at "
            f"most {max(fewest // 2, 1)}"
        )
    pieces = []
    for part in range(parts):
        rows = [row[:count][part::parts] for row, count in zip(store.task_episodes, store.task_counts, strict=True)]
        pieces.append((np.concatenate(rows), np.array([len(row) for row in rows])))
    most, widest = max(len(chosen) for chosen, _ in pieces), max(counts.max() for _, counts in pieces)

    def take(array: np.ndarray) -> np.ndarray:
        return np.stack(
            [np.pad(array[chosen], [(0, most - len(chosen)), *[(0, 0)] * (array.ndim - 1)]) for chosen, _ in pieces]
        )

    per_episode = ("observations", "actions", "rewards", "terminations", "lengths", "task_id")
    return Store(
        **{name: take(getattr(store, name)) for name in per_episode},
        task_episodes=np.stack([task_rows(counts, widest) for _, counts in pieces]),
        task_counts=np.stack([counts for _, counts in pieces]).astype(np.int32),
        weights=None if store.weights is None else take(store.weights),
    )


def task_rows(counts: Sequence[int], width: int | None = None) -> np.ndarray:
    """Which of the things that are listed task after task belong to each task, `counts[n]` of them to task n: int32.

    [N, M] with M the most of any task, or `width` if given. A short row repeats its own entries, so that a careless
    reader still gets the right task.
    """
    counts = np.asarray(counts)
    first = np.cumsum(counts) - counts
    return (first[:, None] + np.arange(width or counts.max()) % counts[:, None]).astype(np.int32)


def task_name(split: TaskSplit, task: TaskEntry) -> str:
    """How messages name a task."""
    return f"{split.where}: task {task.name!r} ({task.source})"


def check_count(split: TaskSplit, task: TaskEntry, count: int) -> None:
    """Raises UserError if a task has too few episodes for its split."""
    least = 2 if split.split == "train" else 1
    if count < least:
        raise UserError(
            f"{task_name(split, task)}: has {count} episode; a {split.split} task needs at least {least}, "
            "because its trajectory prompt is another episode than the one trained on"
        )


def check_same_spaces(first: Episodes, other: Episodes, where: str) -> None:
    """Raises UserError unless two data sets have observations and actions of one size, and the same action bounds."""
    for what in ("observations", "actions"):
        expected, found = getattr(first, what).shape[-1], getattr(other, what).shape[-1]
        if expected != found:
            raise UserError(f"{where}: {what} hold {found} numbers, those of {first.dataset!r} hold {expected}")
    for what in ("action_low", "action_high"):
        expected, found = getattr(first, what), getattr(other, what)
        if not np.array_equal(expected, found):
            raise UserError(
                f"{where}: {what.replace('_', ' ')} bound is {found.tolist()}, that of {first.dataset!r} is "
                f"{expected.tolist()}; all tasks must share one action space"
            )


def _action_bounds(tasks: Sequence[Episodes]) -> tuple[np.ndarray, np.ndarray]:
    """As `bound_actions`, of all tasks."""
    # Padding steps hold zeros, which are no logged actions.
    real = [np.arange(e.actions.shape[1]) < e.lengths[:, None] for e in tasks]
    least = np.min([e.actions[r].min(axis=0) for e, r in zip(tasks, real, strict=True)], axis=0)
    most = np.max([e.actions[r].max(axis=0) for e, r in zip(tasks, real, strict=True)], axis=0)
    return bound_actions(tasks[0], least, most)


def bound_actions(episodes: Episodes, least: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the action space, replaced by the range of the logged actions [A] where there is none.

    Bounds so far apart that normalising overflows, as those of Box(-max, max) are, count as none.
    """
    low = np.where(np.isfinite(episodes.action_low), episodes.action_low, least)
    high = np.where(np.isfinite(episodes.action_high), episodes.action_high, most)
    with np.errstate(over="ignore"):
        usable = np.isfinite(2 * (high - low))
    return np.where(usable, low, least), np.where(usable, high, most)
