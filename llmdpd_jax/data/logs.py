"""Data sets of logged episodes: written to Minari's folder, found there again, and listed in a task manifest.

A data set counts as complete by a record in its metadata, which is written as the last thing. What lacks it was left
half written by a killed run, and is written again.
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from flax import struct
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.storage import get_dataset_path

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.family import QUALITIES
from llmdpd_jax.tasks.manifest import FILE_NAME, Manifest, Reference, save_manifest
from llmdpd_jax.types import Array

_RECORD = "llmdpd_collect"  # metadata key
_ALGORITHM = "llmdpd collect"


@struct.dataclass
class Rollout:
    """Episodes `[...]` of the horizon's length T; what follows a termination is meaningless."""

    observations: Array  # [..., T + 1, O]
    actions: Array  # [..., T, A] as the environment got them
    rewards: Array  # [..., T]
    terminations: Array  # [..., T] bool


@dataclass(frozen=True)
class Collection:
    """What `collect` wrote, or found written."""

    manifest: Manifest
    reused: bool  # everything was there already
    mean_return: float  # over all tasks and episodes
    mean_score: float  # mean over tasks of 100 (return - random) / (expert - random)


def check_request(quality: str, episodes: int, seed: int) -> None:
    """Refuses what no data set can be made of.

    Raises:
        UserError: the quality is not one of QUALITIES, there are fewer than 2 episodes per task (a trajectory prompt is
            another episode than the one trained on), or the seed is out of range.
    """
    if quality not in QUALITIES:
        raise UserError(f"unknown quality {quality!r} (known: {', '.join(QUALITIES)})")
    if episodes < 2:
        raise UserError(f"episodes must be at least 2 per task, found {episodes}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must lie in 0 .. 2^32 - 1, found {seed}")


def find_log(name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a complete data set of these settings; None where it must be written (anew)."""
    try:
        metadata = MinariStorage.read_raw_metadata(get_dataset_path(name) / "data")
    except ValueError:  # absent, or killed while the metadata were written
        return None
    record = metadata.get(_RECORD)
    if record is None:
        if metadata.get("algorithm_name", _ALGORITHM) == _ALGORITHM:
            return None  # killed while episodes were written
        raise UserError(
            f"Minari data set {name!r} in {get_dataset_path(name)} was not written by this program; "
            "move it away, or overwrite it with --overwrite"
        )
    if record["settings"] != settings:
        differing = sorted(key for key in settings if record["settings"].get(key) != settings[key])
        raise UserError(
            f"Minari data set {name!r} in {get_dataset_path(name)} was collected with other {', '.join(differing)}; "
            "overwrite it with --overwrite"
        )
    try:
        dataset = minari.load_dataset(name)
        complete = dataset.total_episodes == settings["episodes"] and len(dataset[-1]) > 0
    except Exception:  # damaged later; h5py raises many kinds
        return None
    return record if complete else None


def write_log(
    name: str,
    rollout: Rollout,
    seeds: np.ndarray,
    settings: dict[str, Any],
    reference: Reference,
    *,
    spaces: tuple[gym.spaces.Box, gym.spaces.Box],
    reference_episodes: int,
    description: str,
) -> dict[str, Any]:
    """Writes the data set of one task, replacing what is there, and returns its record.

    Args:
        name: Minari id.
        rollout: E episodes, `[E, T, ...]`, in the order in which they were logged.
        seeds: `[E]`, kept with the episodes.
        settings: all that decides what the data set holds; one with others is not taken for it.
        reference: returns of the random policy and of the expert, kept as Minari's reference scores too.
        spaces: of observations and of actions.
        reference_episodes: that each reference is the mean of.
        description: for people.
    """
    folder = get_dataset_path(name)
    if folder.exists():
        shutil.rmtree(folder)
    lengths = running(rollout.terminations).sum(-1)
    progress = np.linspace(0.0, 1.0, len(seeds))
    episodes = []
    for i, length in enumerate(lengths):
        ends = rollout.terminations[i, :length]
        cut = np.arange(length) == rollout.rewards.shape[1] - 1
        episodes.append(
            EpisodeBuffer(
                id=i,
                seed=int(seeds[i]),
                options={"progress": float(progress[i])},
                observations=rollout.observations[i, : length + 1],
                actions=rollout.actions[i, :length],
                rewards=rollout.rewards[i, :length],
                terminations=ends,
                truncations=cut & ~ends,  # the time limit, unless the task ended just then
                infos={},
            )
        )
    with warnings.catch_warnings():
        # Minari warns of absent optional metadata, such as a Gymnasium environment, which these data do not have.
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        dataset = minari.create_dataset_from_buffers(
            name,
            episodes,
            observation_space=spaces[0],
            action_space=spaces[1],
            algorithm_name=_ALGORITHM,
            author="LLMDPD-JAX",
            description=description,
        )
    mean_return = float(np.mean([episode.rewards.sum(dtype=np.float64) for episode in episodes]))
    record = {
        "settings": settings,
        "reference": {"random": reference.random, "expert": reference.expert},
        "mean_return": mean_return,
    }
    dataset.storage.update_metadata(
        {
            "ref_min_score": reference.random,  # Minari's names, for minari.get_normalized_score
            "ref_max_score": reference.expert,
            "num_episodes_average_score": reference_episodes,
            _RECORD: record,
        }
    )
    return record


def save_collection(
    manifest: Manifest, records: Sequence[Mapping[str, Any]], out: str | Path, reused: bool
) -> Collection:
    """Writes the manifest of complete data sets, whose records are given in the tasks' order.

    Args:
        out: folder for `tasks.json`, or the path of a `.json` file.
    """
    path = Path(out)
    manifest = save_manifest(manifest, path if path.suffix == ".json" else path / FILE_NAME)
    returns = np.array([record["mean_return"] for record in records])
    random = np.array([task.reference.random for task in manifest.tasks])
    expert = np.array([task.reference.expert for task in manifest.tasks])
    scores = 100 * (returns - random) / (expert - random)
    return Collection(manifest, reused, float(returns.mean()), float(scores.mean()))


def collected(family: str) -> dict[str, int]:
    """The data sets of a family in Minari's folder: how many tasks are complete, by quality, episodes and seed."""
    found: dict[str, int] = {}
    for folder in sorted(get_dataset_path(family).glob("*/*-v0/data")):
        try:
            complete = _RECORD in MinariStorage.read_raw_metadata(folder)
        except ValueError:  # killed while the metadata were written
            complete = False
        name = folder.parent.parent.name
        found[name] = found.get(name, 0) + complete
    return found


def running(terminations: Array) -> Array:
    """True at the steps of an episode, the ending one included, `[..., T]`."""
    return terminations.cumsum(axis=-1) - terminations == 0


def box(low: Sequence[float], high: Sequence[float]) -> gym.spaces.Box:
    """A space of float32 arrays between bounds `[N]`."""
    return gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
