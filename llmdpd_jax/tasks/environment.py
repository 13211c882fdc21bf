"""The environment interface of a task family. Only this file touches Brax, so that another backend can replace it."""

import abc
import contextlib
import io

import jax

with contextlib.redirect_stdout(io.StringIO()):  # Importing Brax prints warnings about optional GPU packages.
    from brax.envs.base import Env, State

__all__ = ["State", "TaskEnv"]


class TaskEnv(Env):
    """A Brax environment whose task is data: one compiled call steps a batch of different tasks.

    Task parameters live in `state.info["parameters"]` (`[P]`, float32, order of `TaskFamily.parameter_names`) and are
    traced, so `jax.vmap` over `reset_task` and `step` runs many tasks at once. `reset(key)` draws a task at random.

    `state.done` marks true ends only. A time limit is the business of whoever rolls out: run `TaskFamily.horizon` steps
    and treat the last one as truncated (or use Brax's `EpisodeWrapper`).
    """

    @abc.abstractmethod
    def reset_task(self, key: jax.Array, parameters: jax.Array) -> State:
        """Starts an episode of the task with the given parameters `[P]`."""

    @property
    def backend(self) -> str:
        """The physics backend; families without rigid-body physics keep this default."""
        return "none"
