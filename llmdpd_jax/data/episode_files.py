"""The train tasks' episodes in files from which single steps are read fast: for data that outgrow the memory.

Reading an episode of a Minari data set takes milliseconds, and a batch needs hundreds. So the data are copied once,
into a folder of two files. `steps.bin` has a row of float32 for every observation, episode after episode and task after
task: the observation, and the action, reward and termination (0 or 1) that followed; zeros, after the last observation
of an episode. `index.safetensors` says which rows are whose, and holds the statistics.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from minari.storage import get_dataset_path
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llmdpd_jax.data.d4rl import open_d4rl
from llmdpd_jax.data.episodes import Episodes, pad_episodes
from llmdpd_jax.data.minari_io import open_episodes
from llmdpd_jax.data.moments import Moments, measure, merge
from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.data.store import bound_actions, check_count, check_same_spaces, make_statistics, task_name
from llmdpd_jax.data.weighting import return_weights
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import TaskEntry, TaskSplit
from llmdpd_jax.types import Statistics

STEPS_FILE, INDEX_FILE = "steps.bin", "index.safetensors"
FORMAT = "2"  # files of another format are written anew
_FLOAT = np.dtype("<f4")
_STATISTICS = tuple(field.name for field in fields(Statistics))


@dataclass(frozen=True)
class EpisodeFiles:
    """The logged data of the train split, on disk. Memory is taken by the index alone, some bytes per episode."""

    split: TaskSplit
    folder: Path
    lengths: np.ndarray  # [E] int64, number of actions of an episode
    task_id: np.ndarray  # [E] int32, counts `split.tasks` in order; episodes of a task follow each other
    returns: np.ndarray  # [E] float64, sum of the rewards of an episode
    statistics: Statistics
    digest: str  # SHA-256 of steps, lengths and tasks: the same digest, the same data
    weights: np.ndarray | None = None  # [E] float32, how much its transitions count in cloning; None: all alike

    def weighted(self, temperature: float) -> "EpisodeFiles":
        """The same data, of which the better episodes are cloned more (`return_weights`)."""
        return replace(self, weights=return_weights(self.returns, self.lengths, self.task_id, temperature))

    @property
    def observation_size(self) -> int:
        return self.statistics.observation_mean.shape[0]

    @property
    def action_size(self) -> int:
        return self.statistics.action_low.shape[0]

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Where each episode begins [E] int64, in rows of the file of steps."""
        return np.cumsum(self.lengths + 1) - (self.lengths + 1)

    @property
    def row_size(self) -> int:
        """Numbers of a row."""
        return self.observation_size + self.action_size + 2

    def read_rows(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """`count[i]` rows from row `first[i]` on, for each i of N, one after another [sum of counts, O + A + 2].

        The file is read, not mapped to memory: what was read is then not held, and a file that is cut short meanwhile
        ends the run with a message.

        Raises:
            UserError: the file is gone, too short, or cannot be read.
        """
        size = self.row_size * _FLOAT.itemsize
        try:
            with open(self.folder / STEPS_FILE, "rb") as file:
                number = file.fileno()
                places = zip((count * size).tolist(), (first * size).tolist(), strict=True)
                parts = [os.pread(number, length, at) for length, at in places]
            return np.frombuffer(b"".join(parts), _FLOAT).reshape(int(count.sum()), self.row_size)
        except (OSError, ValueError) as error:
            raise _damaged(self.folder, error) from error


def open_episode_files(split: TaskSplit, cache: Path, progress: bool = True) -> EpisodeFiles:
    """The files of the train split, which are written first if they are not in the cache yet. No other split is opened.

    They are in a folder of the cache that is named by the data sets' files, their sizes and times of change: data that
    were changed are written anew. A process that is killed while writing leaves a folder "tmp….part", and never one
    that another takes for whole.

    Args:
        cache: made if it does not exist; hosts that share it share the files.
        progress: shows a progress bar while writing.

    Raises:
        UserError: `split` is not the train split; a data set cannot be used (as `load_tasks` says); the files are
            damaged, or cannot be written.
    """
    if split.split != "train":
        raise UserError(f"{split.where}: only the train split is streamed, not {split.split!r}")
    folder = cache / _fingerprint(split)
    if not folder.is_dir():
        _write_beside(split, folder, progress)
    return _read_index(split, folder)


def _fingerprint(split: TaskSplit) -> str:
    """Changes when any file of the data sets does, without reading them."""
    found = []
    for task in split.tasks:
        place = Path(task.dataset) if task.is_file else Path(get_dataset_path(task.dataset))
        files = [place] if task.is_file else sorted(path for path in place.rglob("*") if path.is_file())
        status = [(str(path), path.stat()) for path in files if path.exists()]
        found.append([(name, at.st_size, at.st_mtime_ns) for name, at in status])
    return hashlib.sha256(json.dumps([FORMAT, found]).encode()).hexdigest()[:32]


def _write_beside(split: TaskSplit, folder: Path, progress: bool) -> None:
    """Writes a folder under another name, and renames it when it is whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix="tmp", suffix=".part"))
        try:
            _write(split, part, progress)
            try:
                os.rename(part, folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder.parent}: the episodes cannot be written there ({error})") from error


def _write(split: TaskSplit, folder: Path, progress: bool) -> None:
    lengths: list[int] = []
    returns: list[float] = []
    counts: list[int] = []
    observed: Moments | None = None
    with open(folder / STEPS_FILE, "wb") as file, progress_bar(progress) as bar:
        digest = hashlib.sha256()
        for task in bar.track(split.tasks, description="copying train tasks for streaming"):
            before = len(lengths)
            for episode in _read_task(task):
                if observed is None:
                    first, observed, rewarded = episode, measure(episode.observations[0]), measure(episode.rewards[0])
                    least, most = episode.actions[0].min(axis=0), episode.actions[0].max(axis=0)
                else:
                    if len(lengths) == before:
                        check_same_spaces(first, episode, task_name(split, task))
                    observed = merge(observed, measure(episode.observations[0]))
                    rewarded = merge(rewarded, measure(episode.rewards[0]))
                    least = np.minimum(least, episode.actions[0].min(axis=0))
                    most = np.maximum(most, episode.actions[0].max(axis=0))
                rows = _rows(episode)
                digest.update(rows)
                file.write(rows)
                lengths.append(int(episode.lengths[0]))
                returns.append(float(episode.rewards[0].sum(dtype=np.float64)))
            counts.append(len(lengths) - before)
            check_count(split, task, counts[-1])
        file.flush()
        os.fsync(file.fileno())  # a whole index must not be found beside steps that never reached the disk
    statistics = make_statistics(
        (observed.mean, observed.std), (rewarded.mean, rewarded.std), bound_actions(first, least, most)
    )
    index = {
        "lengths": np.array(lengths, np.int64),
        "task_id": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    }
    for array in index.values():
        digest.update(array)
    index["returns"] = np.array(returns)
    arrays = index | {name: np.asarray(getattr(statistics, name)) for name in _STATISTICS}
    save_file(arrays, folder / INDEX_FILE, {"digest": digest.hexdigest()})


def _read_task(task: TaskEntry) -> Iterator[Episodes]:
    """The episodes of a task, one at a time."""
    reader = open_d4rl(task.dataset) if task.is_file else open_episodes(task.dataset)
    for numbered in reader.episodes:
        yield pad_episodes(reader, [numbered])


def _rows(episode: Episodes) -> np.ndarray:
    """What the file of steps holds of one episode of t steps [t + 1, O + A + 2]."""
    observations = episode.observations[0]
    followed = np.concatenate(
        [episode.actions[0], episode.rewards[0][:, None], episode.terminations[0][:, None]], axis=1, dtype=_FLOAT
    )
    return np.concatenate([observations, np.pad(followed, [(0, 1), (0, 0)])], axis=1, dtype=_FLOAT)


def _read_index(split: TaskSplit, folder: Path) -> EpisodeFiles:
    """Raises UserError if the files do not fit together."""
    try:
        with safe_open(folder / INDEX_FILE, "np") as file:
            digest = file.metadata()["digest"]
            arrays = {name: file.get_tensor(name) for name in ("lengths", "task_id", "returns", *_STATISTICS)}
        files = EpisodeFiles(
            split,
            folder,
            arrays["lengths"],
            arrays["task_id"],
            arrays["returns"],
            Statistics(**{name: jnp.asarray(arrays[name]) for name in _STATISTICS}),
            digest,
        )
        if len(files.lengths) != len(files.task_id) or (files.lengths < 1).any():
            raise ValueError(f"{INDEX_FILE} contradicts itself")
        if (np.diff(files.task_id) < 0).any() or len(np.unique(files.task_id)) != len(split.tasks):
            raise ValueError(f"{INDEX_FILE} is of other tasks")
        rows, size = int(np.sum(files.lengths + 1)), (folder / STEPS_FILE).stat().st_size
        if size != rows * files.row_size * _FLOAT.itemsize:
            raise ValueError(f"{STEPS_FILE} of {rows} rows of {files.row_size} numbers has {size} bytes")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error
    return files


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder}: the episodes there are damaged ({error!s:.200}). Delete that folder; it will be written again"
    )
