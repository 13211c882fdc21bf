"""Logs Meta-World's tasks in parallel processes, and writes Minari data sets and a manifest as `collect` does."""

import multiprocessing
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from llmdpd_jax.data.collect import episode_seeds
from llmdpd_jax.data.logs import Collection, Rollout, box, check_request, find_log, save_collection, write_log
from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.errors import UserError
from llmdpd_jax.parallel import cpus
from llmdpd_jax.tasks.family import SPLITS
from llmdpd_jax.tasks.manifest import Manifest, Reference, TaskEntry
from llmdpd_jax.tasks.metaworld.behaviour import REFERENCE_EPISODES, Logged, Request, log_task
from llmdpd_jax.tasks.metaworld.environment import (
    ACTION_SIZE,
    ENV_ID,
    LONGEST,
    OBSERVATION_SIZE,
    Goal,
    Vector,
    draw_places,
)
from llmdpd_jax.tasks.metaworld.sets import SceneSet, find_set
from llmdpd_jax.tasks.metaworld.wordings import describe_scene

_VERSION = 1  # raise it when behaviours change, so that older data are not taken for new


@dataclass(frozen=True)
class PlacedScene:
    """A task: a scene with its objects and its goal in place."""

    name: str
    split: str
    scene: str
    vector: Vector
    goal: Goal


def place_scenes(chosen: SceneSet, goals: tuple[int, int], bar: Progress) -> tuple[PlacedScene, ...]:
    """The tasks of a set, with so many goals for each train scene and for each test scene; always the same."""
    scenes = [(split, scene, goals[i]) for i, split in enumerate(SPLITS) for scene in chosen.scenes(split)]
    return tuple(
        PlacedScene(f"{scene}-{split}-{i:02d}", split, scene, vector, goal)
        for split, scene, count in bar.track(scenes, description="drawing goals")
        for i, (vector, goal) in enumerate(draw_places(scene, split, count))
    )


def collect_metaworld(
    name: str,
    quality: str,
    episodes: int,
    seed: int,
    out: str | Path,
    overwrite: bool = False,
    *,
    horizon: int | None = None,
    goals: Sequence[int] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Collection:
    """Logs `episodes` episodes of every task of one of Meta-World's sets, as `collect` does for a task family.

    The data sets are called `<name>/<quality>-h<horizon>-e<episodes>-s<seed>/<task>-v0`. Complete ones are reused, also
    by a call that asks for other numbers of goals.

    Args:
        name: of a set, "metaworld-ml1-push-v3" (`tasks.metaworld.sets`).
        quality, episodes, seed, out, overwrite, progress: as for `collect`. What noise a quality has:
            `tasks.metaworld.behaviour.noise`.
        horizon: steps of an episode, of data and evaluation; None is Meta-World's 500. The scripted policies reach most
            goals within 60 to 120 steps and then stand still, so that 150 or 200 (T2DA's) hold what is to be learned.
        goals: how many for each train scene and each test scene; None as the set has it.
        workers: processes that log; None is one for each CPU. The arrays do not depend on it.

    Raises:
        UserError: as `collect`; horizon, goals or workers are out of range, the package is not installed, or a process
            was lost.
    """
    chosen = find_set(name)
    check_request(quality, episodes, seed)
    horizon = LONGEST if horizon is None else horizon
    goals = chosen.goals if goals is None else tuple(goals)
    if not 1 <= horizon <= LONGEST:
        raise UserError(f"horizon must lie in 1 .. {LONGEST}, found {horizon}")
    if min(goals) < 1:
        raise UserError(f"goals must be at least 1 for train and for test scenes, found {goals[0]} and {goals[1]}")
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, found {workers}")

    with progress_bar(progress) as bar:
        tasks = place_scenes(chosen, goals, bar)
        ids = [f"{name}/{quality}-h{horizon}-e{episodes}-s{seed}/{task.name}-v0" for task in tasks]
        settings = [_settings(task, quality, episodes, seed, horizon) for task in tasks]
        seeds = [episode_seeds(quality, seed, zlib.crc32(task.name.encode()), episodes) for task in tasks]
        looking = bar.track(zip(ids, settings, strict=True), total=len(ids), description="looking for data sets")
        records = [None if overwrite else find_log(each, wanted) for each, wanted in looking]
        missing = [i for i, record in enumerate(records) if record is None]
        requests = {
            i: Request(tasks[i].scene, tasks[i].vector, quality, horizon, tuple(seeds[i].tolist())) for i in missing
        }
        shown = bar.add_task(f"logging {quality} data sets", total=len(missing)) if missing else None
        for i, logged in _log_all(requests, workers or cpus()):
            records[i] = _write(tasks[i], ids[i], logged, seeds[i], settings[i])
            bar.advance(shown)
    entries = [_entry(*each) for each in zip(tasks, ids, records, strict=True)]
    return save_collection(Manifest(tuple(entries), name, None, horizon), records, out, not missing)


def _log_all(requests: dict[int, Request], workers: int) -> Iterator[tuple[int, Logged]]:
    """What was logged for each request, with its key, in the order in which they are done."""
    if workers == 1 or len(requests) < 2:
        yield from ((i, log_task(request)) for i, request in requests.items())
        return
    # A fork of a process in which JAX runs threads may hang.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(requests)), spawn, _end_with_parent)
    try:
        asked = {pool.submit(log_task, request): i for i, request in requests.items()}
        for done in as_completed(asked):
            yield asked.pop(done), done.result()  # popped, since it holds the arrays
    except BrokenProcessPool:
        raise UserError(
            "collect: a process that logged was lost, killed or out of memory. Data sets that are complete are kept: "
            "run it again, with fewer --workers if memory is short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, even by SIGKILL."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _settings(task: PlacedScene, quality: str, episodes: int, seed: int, horizon: int) -> dict[str, Any]:
    """All that decides what a data set holds; rewards and scripted policies are those of a version of the package."""
    return {
        "version": _VERSION,
        "metaworld": version("metaworld"),
        "task": task.name,
        "vector": list(task.vector),
        "horizon": horizon,
        "quality": quality,
        "episodes": episodes,
        "seed": seed,
    }


def _write(task: PlacedScene, name: str, logged: Logged, seeds: np.ndarray, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the data set of one task and returns its record."""
    endless = np.zeros(logged.rewards.shape, bool)
    return write_log(
        name,
        Rollout(logged.observations, logged.actions, logged.rewards, endless),
        seeds,
        settings,
        Reference(logged.random, logged.expert),
        spaces=(
            box([-np.inf] * OBSERVATION_SIZE, [np.inf] * OBSERVATION_SIZE),
            box([-1] * ACTION_SIZE, [1] * ACTION_SIZE),
        ),
        reference_episodes=REFERENCE_EPISODES,
        description=f"Meta-World's {task.scene} with its goal at {task.goal}, which the observation hides, logged by "
        f"the package's scripted policy, which sees it, with noise: {settings['quality']}.",
    )


def _entry(task: PlacedScene, dataset: str, record: dict[str, Any]) -> TaskEntry:
    """A task as the manifest lists it."""
    return TaskEntry(
        name=task.name,
        split=task.split,
        dataset=dataset,
        descriptions=describe_scene(task.scene, task.goal, held_out=False),
        held_out_descriptions=describe_scene(task.scene, task.goal, held_out=True),
        parameters=dict(zip(("goal_x", "goal_y", "goal_z"), task.goal, strict=True)),
        reference=Reference(**record["reference"]),
        gym_env={"id": ENV_ID, "scene": task.scene, "vector": list(task.vector)},
    )
