"""Rolls out behaviour policies and writes what they logged as Minari data sets with a task manifest."""

import functools
import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.data.logs import (
    Collection,
    Rollout,
    box,
    check_request,
    find_log,
    running,
    save_collection,
    write_log,
)
from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.tasks.family import Task, TaskFamily, get_family
from llmdpd_jax.tasks.manifest import Manifest, Reference, TaskEntry
from llmdpd_jax.types import Array

_VERSION = 1  # raise it when environments or behaviours change, so that older data are not taken for new
EPISODES_AT_ONCE = 1024  # rolled out in one call, and what a killed run loses at most
_REFERENCE_SEED = 0  # references do not depend on the seed of the data


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
    check_request(quality, episodes, seed)
    tasks = chosen.tasks()
    ids = [f"{family}/{quality}-e{episodes}-s{seed}/{task.name}-v0" for task in tasks]
    settings = [_settings(chosen, task, quality, episodes, seed) for task in tasks]
    with progress_bar(progress) as bar:
        looking = bar.track(zip(ids, settings, strict=True), total=len(ids), description="looking for data sets")
        records = [None if overwrite else find_log(name, wanted) for name, wanted in looking]
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
    return save_collection(Manifest(tuple(entries), family, family, chosen.horizon), records, out, not missing)


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
    return jnp.where(running(rollout.terminations), rollout.rewards, 0).sum(-1)


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


def _write(
    family: TaskFamily,
    name: str,
    rollout: Rollout,
    seeds: np.ndarray,
    settings: dict[str, Any],
    reference: Reference,
) -> dict[str, Any]:
    """Writes the data set of one task and returns its record."""
    return write_log(
        name,
        rollout,
        seeds,
        settings,
        reference,
        spaces=(box(family.observation_low, family.observation_high), box(family.action_low, family.action_high)),
        reference_episodes=family.reference_episodes,
        description=f"Task {settings['task']} {settings['parameters']} of the task family {family.name}, logged by its "
        f"{settings['quality']} behaviour policy.",
    )
