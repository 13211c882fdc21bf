"""Batches from files for data that outgrow the device, drawn ahead by threads (Grain): as `sample_batch` draws them.

A batch is a function of the run's seed and the number of its update, so a run that is resumed goes on with the batches
that it would have had, and hosts that draw the same batch read each its own groups of it.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from llmdpd_jax.data.episode_files import EpisodeFiles
from llmdpd_jax.data.sampler import BatchSizes, prompt_count
from llmdpd_jax.data.store import best_first
from llmdpd_jax.errors import UserError
from llmdpd_jax.types import Batch, TrajectoryPrompt


class Draws(NamedTuple):
    """Which steps a batch is made of. Episodes are numbered as in the store."""

    task_id: np.ndarray  # [G] int32
    prompt_episode: np.ndarray  # [G]
    prompt_step: np.ndarray  # [G] the first of the window
    episode: np.ndarray  # [G, S]
    step: np.ndarray  # [G, S] the first of the chunk


def make_draw(files: EpisodeFiles, sizes: BatchSizes, seed: int) -> Callable[[int], Draws]:
    """`draw(update)`: which steps the batch of an update is made of. What is drawn is what `sample_batch` says.

    Every task needs two episodes and every episode `sizes.chunk` steps.
    """
    lengths = files.lengths
    counts = np.bincount(files.task_id)  # [N] episodes of each task
    last = np.cumsum(counts)  # [N] one beyond its last episode
    ranked, prompts = best_first(files.returns, files.task_id), np.asarray(prompt_count(counts, sizes.prompt_share))
    starts = lengths - (sizes.chunk - 1)  # [E]
    ends = np.cumsum(starts)  # [E] starts up to and with an episode, of all tasks
    begins = ends - starts

    def draw(update: int) -> Draws:
        rng = np.random.default_rng([seed, update])
        task_id = rng.integers(0, len(counts), sizes.groups)
        first = last[task_id] - counts[task_id]  # [G] first episode of the task
        prompt = ranked[first + rng.integers(0, prompts[task_id])]
        window = rng.integers(0, np.maximum(lengths[prompt] - sizes.prompt_length, 0) + 1)
        usable = ends[last[task_id] - 1] - begins[first] - starts[prompt]  # [G] starts of the task's other episodes
        at = begins[first][:, None] + rng.integers(0, usable[:, None], (sizes.groups, sizes.group_size))
        # The starts of the prompt's episode are leapt over.
        at += np.where(at >= begins[prompt][:, None], starts[prompt][:, None], 0)
        episode = np.searchsorted(ends, at, side="right")
        return Draws(task_id.astype(np.int32), prompt, window, episode, at - begins[episode])

    return draw


def read_batch(files: EpisodeFiles, sizes: BatchSizes, draws: Draws) -> Batch:
    """The batch of these draws, NumPy, in the data's own units.

    Raises:
        UserError: the files are gone or were cut short.
    """
    size, width, chunk = files.observation_size, files.action_size, sizes.chunk
    first = (files.first_rows[draws.episode] + draws.step).ravel()
    steps = files.read_rows(first, np.full(first.shape, chunk + 1))
    observations, actions, rewards, terminations = _fields(
        steps.reshape(*draws.step.shape, chunk + 1, -1), size, width
    )  # [G, S, H + 1, ...]
    weights = np.asarray(sizes.discount ** np.arange(chunk), np.float32)

    real = np.minimum(files.lengths[draws.prompt_episode] - draws.prompt_step, sizes.prompt_length)  # [G] steps
    place = np.arange(sizes.prompt_length + 1)
    window = np.zeros((*real.shape, len(place), files.row_size), np.float32)
    window[place <= real[:, None]] = files.read_rows(
        files.first_rows[draws.prompt_episode] + draws.prompt_step, real + 1
    )
    seen, acted, rewarded, _ = _fields(window, size, width)  # [G, T + 1, ...]
    mask = place[:-1] < real[:, None]
    return Batch(
        observations=observations[:, :, 0],
        actions=actions[:, :, :-1].reshape(*draws.step.shape, -1),
        rewards=np.sum(weights * rewards[:, :, :-1], axis=-1),
        next_observations=observations[:, :, -1],
        terminations=np.any(terminations[:, :, :-1], axis=-1),
        task_id=draws.task_id,
        prompt=TrajectoryPrompt(
            # The last observation of an episode is that of no step.
            observations=np.where(mask[..., None], seen[:, :-1], 0),
            actions=acted[:, :-1],
            rewards=rewarded[:, :-1],
            next_observations=seen[:, 1:],
            mask=mask,
        ),
        weights=None if files.weights is None else files.weights[draws.episode],
    )


def _fields(rows: np.ndarray, size: int, width: int) -> tuple[np.ndarray, ...]:
    """Observations [..., O], actions [..., A], rewards [...] and terminations [...] of rows [..., O + A + 2]."""
    return rows[..., :size], rows[..., size : size + width], rows[..., -2], rows[..., -1]


class BatchStream:
    """The batches of a run, one update after another, drawn ahead. A context manager: on leaving, its threads end."""

    def __init__(
        self,
        files: EpisodeFiles,
        sizes: BatchSizes,
        seed: int,
        process: tuple[int, int] = (0, 1),
        threads: int = 4,
        ahead: int = 16,
    ):
        """
        Args:
            seed: of the run; the same seed gives the same batches.
            process: number of this host and count of hosts; host p of P gets the groups from p G / P to (p + 1) G / P.
            threads: that read; more help where the disk makes one wait.
            ahead: batches that are held ready, at least one for each thread.

        Raises:
            UserError: the hosts do not divide the groups evenly.
        """
        index, count = process
        if sizes.groups % count:
            raise UserError(f"data.groups: {sizes.groups} groups cannot be shared evenly by {count} processes")
        own = slice(index * sizes.groups // count, (index + 1) * sizes.groups // count)
        draw = make_draw(files, sizes, seed)

        def batch(update: int) -> Batch:
            return read_batch(files, sizes, Draws(*(drawn[own] for drawn in draw(update))))

        self._batch, self._threads, self._ahead = batch, threads, ahead
        self._iterator = None
        self.set_state({"next_update": 0})

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self._iterator.close()

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on from here: plain numbers."""
        return {"next_update": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on with the update that the state names."""
        import grain  # only here: most runs need none of it

        if self._iterator is not None:
            self._iterator.close()
        self._next = state["next_update"]
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._ahead)
        updates = grain.MapDataset.range(self._next, sys.maxsize).map(self._batch)
        self._iterator = iter(updates.to_iter_dataset(options))

    def take(self, count: int, room: int | None = None) -> Batch:
        """The batches of the next `count` updates, stacked [room, G, S, ...]; room: `count` unless given.

        Where there is room for more, zeros follow: a call of few updates then compiles nothing anew.
        """
        room = count if room is None else room
        batches = [next(self._iterator) for _ in range(count)]
        self._next += count

        def stack(*leaves: np.ndarray) -> np.ndarray:
            stacked = np.zeros((room, *leaves[0].shape), leaves[0].dtype)
            np.stack(leaves, out=stacked[:count])
            return stacked

        return jax.tree.map(stack, *batches)
