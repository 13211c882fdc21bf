"""Rolls out behaviour policies and writes what they logged as Minari data sets with a task manifest."""

import functools
import hashlib
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import minari
import numpy as np
from flax import struct
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.storage import get_dataset_path

from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.family import QUALITIES, Task, TaskFamily, get_family
from llmdpd_jax.tasks.manifest import FILE_NAME, Manifest, Reference, TaskEntry, save_manifest
from llmdpd_jax.types import Array

_RECORD = "llmdpd_collect"  # metadata key, written as the last thing: present means the data set is complete
_ALGORITHM = "llmdpd collect"
_VERSION = 1  # raise it when environments or behaviours change, so that older data are not taken for new
EPISODES_AT_ONCE = 1024  # rolled out in one call, and what a killed run loses at most
_REFERENCE_SEED = 0  # references do not depend on the seed of the data


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


def collect(
    family: str, quality: str, episodes: int, seed: int, out: str | Path, overwrite: bool = False, progress: bool = True
) -> Collection:
    """Logs `episodes` episodes of every task of a family and writes one Minari data set per task and a manifest.

    The data sets are called `<family>/<quality>-e<episodes>-s<seed>/<task>-v0` and lie in Minari's folder
    (MINARI_DATASETS_PATH). The same arguments give the same arrays. Complete data sets of the same settings are
    reused; those that a killed run left half written are written again.

    Args:
        family: name of a registered task family.
        quality: one of QUALITIES; "mixed" is the log of a learner from random to expert, "replay" of one that gets to
            medium only.
        episodes: per task, at least 2, because a trajectory prompt is another episode than the one trained on.
        seed: 0 or more.
        out: folder for `tasks.json`, or the path of a `.json` file.
        overwrite: writes all data sets anew, whatever is there.
        progress: shows a progress bar.

    Raises:
        UserError: an argument is out of range, or a data set of the same name has other settings or another origin.
    """
    chosen = get_family(family)
    if quality not in QUALITIES:
        raise UserError(f"unknown quality {quality!r} (known: {', '.join(QUALITIES)})")
    if episodes < 2:
        raise UserError(f"episodes must be at least 2 per task, found {episodes}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must lie in 0 .. 2^32 - 1, found {seed}")
    path = Path(out)
    if path.suffix != ".json":
        path = path / FILE_NAME

    tasks = chosen.tasks()
    ids = [f"{family}/{quality}-e{episodes}-s{seed}/{task.name}-v0" for task in tasks]
    settings = [_settings(chosen, task, quality, episodes, seed) for task in tasks]
    with progress_bar(progress) as bar:
        looking = bar.track(zip(ids, settings, strict=True), total=len(ids), description="looking for data sets")
        records = [None if overwrite else _find_record(name, wanted) for name, wanted in looking]
        missing = [i for i, record in enumerate(records) if record is None]
        at_once = max(1, EPISODES_AT_ONCE // episodes)
        shown = bar.add_task(f"logging {quality} data sets", total=len(missing)) if missing else None
        for first in range(0, len(missing), at_once):
            group = missing[first : first + at_once]
            # The last group repeats a task, so that all are of one shape and compile once.
            filled = (group + group[-1:] * at_once)[: min(at_once, len(tasks))]
            seeds = np.stack([episode_seeds(quality, seed, i, episodes) for i in filled])
            rollout, references = roll_out_tasks(chosen, quality, seeds, [tasks[i] for i in filled])
            for row, i in enumerate(group):
                mine = jax.tree.map(lambda array, row=row: array[row], rollout)
                records[i] = _write(chosen, ids[i], mine, seeds[row], settings[i], references[row])
                bar.advance(shown)

    entries = [
        TaskEntry(
            name=task.name,
            split=task.split,
            dataset=name,
            descriptions=chosen.descriptions(task.parameters, held_out=False),
            held_out_descriptions=chosen.descriptions(task.parameters, held_out=True),
            parameters=dict(task.parameters),
            reference=Reference(**record["reference"]),
        )
        for task, name, record in zip(tasks, ids, records, strict=True)
    ]
    manifest = save_manifest(Manifest(tuple(entries), family, family, chosen.horizon), path)
    returns = np.array([record["mean_return"] for record in records])
    random = np.array([entry.reference.random for entry in entries])
    expert = np.array([entry.reference.expert for entry in entries])
    scores = 100 * (returns - random) / (expert - random)
    return Collection(manifest, not missing, float(returns.mean()), float(scores.mean()))


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


def episode_seeds(quality: str, seed: int, task: int, episodes: int) -> np.ndarray:
    """The seed of each episode of a task, `[episodes]` uint32; other arguments give unrelated seeds."""
    return np.random.SeedSequence([seed, task, zlib.crc32(quality.encode())]).generate_state(episodes)


def make_episode(family: TaskFamily, *qualities: str) -> Callable[..., Rollout]:
    """The pure function `(seed, progress, parameters[P], which=0) -> Rollout` of one episode; `jax.vmap` it for many.

    `progress` in [0, 1] is the episode's place in its data set (see `Behaviour`). Actions are clipped to their bounds.
    Of several qualities `which` says whose behaviour it is: they share one environment, which takes a compiler longest.
    """
    env, behaviours = family.make_env(), [family.behaviour(quality) for quality in qualities]
    low, high = jnp.array(family.action_low), jnp.array(family.action_high)

    def episode(seed: Array, progress: Array, parameters: Array, which: Array | int = 0) -> Rollout:
        draw_key, reset_key, step_key = jax.random.split(jax.random.key(seed), 3)
        traits = [behaviour.draw(draw_key, progress, parameters) for behaviour in behaviours]
        first = env.reset_task(reset_key, parameters)

        def step(state, key):
            each = [b.act(mine, parameters, state.obs, key) for b, mine in zip(behaviours, traits, strict=True)]
            action = jnp.clip(jnp.stack(each)[which], low, high)
            state = env.step(state, action)
            return state, (state.obs, action, state.reward, state.done > 0)

        _, (following, actions, rewards, ends) = jax.lax.scan(step, first, jax.random.split(step_key, family.horizon))
        return Rollout(jnp.concatenate([first.obs[None], following]), actions, rewards, ends)

    return episode


def roll_out_tasks(
    family: TaskFamily, quality: str, seeds: np.ndarray, tasks: Sequence[Task]
) -> tuple[Rollout, list[Reference]]:
    """All episodes of some tasks of a family, and the tasks' references, in one compiled call.

    Args:
        seeds: `[N, E]` uint32, a seed for each episode of each task.

    Returns:
        The episodes as numpy arrays, leading axes `[N, E]`, and the mean returns of the random and the expert policy
        per task, over `family.reference_episodes` episodes each.
    """
    parameters = np.stack([family.parameter_array(task.parameters) for task in tasks])
    rollout, random, expert = jax.device_get(_roll_out_tasks(family, quality, seeds, parameters))
    return rollout, [Reference(float(r), float(e)) for r, e in zip(random, expert, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _roll_out_tasks(family: TaskFamily, quality: str, seeds: Array, parameters: Array) -> tuple[Rollout, Array, Array]:
    logged, measured = seeds.shape[1], family.reference_episodes
    counts = [logged, measured, measured]
    references = reference_seeds(parameters, measured)
    seeds = jnp.concatenate([seeds, references, references], axis=1)
    progress = jnp.concatenate([jnp.linspace(0.0, 1.0, count) for count in counts])
    per_task = jax.vmap(make_episode(family, quality, "random", "expert"), in_axes=(0, 0, None, 0))
    each = jax.vmap(per_task, in_axes=(0, None, 0, None))(seeds, progress, parameters, np.repeat([0, 1, 2], counts))
    returns = returns_of(each)
    random, expert = returns[:, logged:-measured].mean(-1), returns[:, -measured:].mean(-1)
    return jax.tree.map(lambda x: x[:, :logged], each), random, expert


def roll_out(family: TaskFamily, quality: str, seeds: Array, parameters: Array) -> Rollout:
    """Episodes `[N, E]` of N tasks with parameters `[N, P]`, from seeds `[N, E]`; the first is early, the last late."""
    per_task = jax.vmap(make_episode(family, quality), in_axes=(0, 0, None))
    progress = jnp.linspace(0.0, 1.0, seeds.shape[1])
    return jax.vmap(per_task, in_axes=(0, None, 0))(seeds, progress, parameters)


def returns_of(rollout: Rollout) -> Array:
    """The returns `[...]` of episodes: undiscounted, up to where they end."""
    return jnp.where(_running(rollout.terminations), rollout.rewards, 0).sum(-1)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def mean_returns(family: TaskFamily, quality: str, parameters: Array, episodes: int) -> Array:
    """The mean return `[N]` of a behaviour policy on tasks with parameters `[N, P]`; always the same."""
    return returns_of(roll_out(family, quality, reference_seeds(parameters, episodes), parameters)).mean(-1)


def reference_seeds(parameters: Array, episodes: int) -> Array:
    """Seeds `[N, E]` of the episodes that measure tasks with parameters `[N, P]`: a task's depend on no other task."""
    keys = jax.vmap(lambda p: jax.random.fold_in(jax.random.key(_REFERENCE_SEED), _bits(p)))(parameters)
    return jax.vmap(lambda key: jax.random.bits(key, (episodes,)))(keys)


def _bits(parameters: Array) -> Array:
    """A number made of the bits of all parameters `[P]`."""
    bits = jax.lax.bitcast_convert_type(parameters, jnp.uint32)
    return functools.reduce(lambda total, one: total * jnp.uint32(1664525) + one, bits, jnp.uint32(0))


def _running(terminations: Array) -> Array:
    """True at the steps of an episode, the ending one included, `[..., T]`."""
    return terminations.cumsum(axis=-1) - terminations == 0


def _settings(family: TaskFamily, task: Task, quality: str, episodes: int, seed: int) -> dict[str, Any]:
    """All that decides what a data set holds."""
    expert = {"expert": hashlib.sha256(family.expert.read_bytes()).hexdigest()[:16]} if family.expert else {}
    return {
        **expert,
        "version": _VERSION,
        "family": family.name,
        "task": task.name,
        "parameters": dict(task.parameters),
        "horizon": family.horizon,
        "quality": quality,
        "episodes": episodes,
        "seed": seed,
    }


def _find_record(name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
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


def _write(
    family: TaskFamily,
    name: str,
    rollout: Rollout,
    seeds: np.ndarray,
    settings: dict[str, Any],
    reference: Reference,
) -> dict[str, Any]:
    """Writes the data set of one task, replacing what is there, and returns its record."""
    folder = get_dataset_path(name)
    if folder.exists():
        shutil.rmtree(folder)
    lengths = _running(rollout.terminations).sum(-1)
    progress = np.linspace(0.0, 1.0, len(seeds))
    episodes = []
    for i, length in enumerate(lengths):
        ends = rollout.terminations[i, :length]
        cut = np.arange(length) == family.horizon - 1
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
            observation_space=_box(family.observation_low, family.observation_high),
            action_space=_box(family.action_low, family.action_high),
            algorithm_name=_ALGORITHM,
            author="LLMDPD-JAX",
            description=f"Task {settings['task']} {settings['parameters']} of the task family {family.name}, "
            f"logged by its {settings['quality']} behaviour policy.",
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
            "num_episodes_average_score": family.reference_episodes,
            _RECORD: record,
        }
    )
    return record


def _box(low: tuple[float, ...], high: tuple[float, ...]) -> gym.spaces.Box:
    return gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
