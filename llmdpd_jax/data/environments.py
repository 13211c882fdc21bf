"""The Gymnasium environment of a task, and the returns that its scores are relative to, from manifest or data set."""

from functools import partial
from typing import Any

import gymnasium as gym

from llmdpd_jax.data.minari_io import open_dataset
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import Reference, TaskEntry


def make_environment(task: TaskEntry, where: str) -> gym.Env:
    """The environment that the manifest names for the task ("gym_env"), or else the one its Minari data set was logged
    in; of a data set that has one for evaluation, that one.

    Raises:
        UserError: there is neither, or what it needs is not installed. The message starts with `where`.
    """
    where, needs = f"{where}: task {task.name!r}", ()
    if task.gym_env is not None:
        make, named = partial(gym.make, **task.gym_env), f'"gym_env" {task.gym_env["id"]!r}'
    elif has_environment(task):
        dataset = open_dataset(task.dataset)
        make, named = partial(dataset.recover_environment, eval_env=True), f"that of {task.source}"
        needs = dataset.storage.metadata.get("requirements", ())
    else:
        raise UserError(
            f'{where}: there is nothing to evaluate in. The manifest names no "env" (a registered task family), the '
            f'task no "gym_env" (a Gymnasium id), and {task.source} holds no environment. Name one; without one, '
            "policies act through `llmdpd_jax.load_policy(...).act`"
        )
    try:
        return make()
    except Exception as error:  # an environment may raise anything
        hint = "".join(f' "{package}"' for package in needs)
        raise UserError(
            f"{where}: its environment, {named}, cannot be made ({type(error).__name__}: {error})"
            + (f"; it needs: pip install{hint}" if hint else "")
        ) from error


def has_environment(task: TaskEntry) -> bool:
    """Whether manifest or data set say in which environment the task is to be done. Raises as `open_dataset`."""
    metadata = _metadata(task)
    return bool(task.gym_env or metadata.get("env_spec") or metadata.get("eval_env_spec"))


def find_reference(task: TaskEntry, where: str) -> Reference:
    """The returns of a random policy and an expert: the manifest's, or else those that the Minari data set holds.

    Raises:
        UserError: there are none, or the expert's is not the higher one. The message starts with `where`.
    """
    found = task.reference
    if found is None:
        metadata = _metadata(task)
        low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        if low is None or high is None:
            raise UserError(
                f'{where}: task {task.name!r} has no "reference" and {task.source} no ref_min_score and ref_max_score, '
                "so returns cannot be scored. Give the task the mean returns of a random policy and of an expert: "
                '"reference": {"random": ..., "expert": ...}'
            )
        found = Reference(float(low), float(high))
    if not found.expert > found.random:
        raise UserError(
            f"{where}: task {task.name!r}: the reference returns are {found.random} (random) and {found.expert} "
            "(expert); the expert's must be the higher one"
        )
    return found


def _metadata(task: TaskEntry) -> dict[str, Any]:
    """What the task's Minari data set says of itself; D4RL files say nothing."""
    return {} if task.is_file else open_dataset(task.dataset).storage.metadata
