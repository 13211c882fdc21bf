"""The environment interface of a task family. Only this file touches Brax, so that another backend can replace it."""

import abc
import contextlib
import io
import warnings

import jax
import jax.numpy as jnp
import mujoco

with contextlib.redirect_stdout(io.StringIO()):  # Importing Brax prints warnings about optional GPU packages.
    from brax import envs, math
    from brax.base import System
    from brax.envs.base import Env, PipelineEnv, State, Wrapper

__all__ = ["PipelineEnv", "State", "System", "TaskEnv", "Wrapper", "make_robot", "point_on", "unturned"]


def make_robot(name: str, backend: str, **options) -> PipelineEnv:
    """One of Brax's own environments, such as "halfcheetah", with one of its physics backends and its own options.

    `n_frames` is one of these: how many steps of the physics make a step. Without the warnings that reading the robot's
    model gives: of MuJoCo, which would be logged to a file in the current folder, and that Brax's environments are in
    maintenance.
    """
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return envs.get_environment(name, backend=backend, **options)
    finally:
        mujoco.set_mju_user_warning(handler)


def point_on(state: State, link: int, place: tuple[float, float, float]) -> jax.Array:
    """Where `[3]` a point fixed on a link is, in metres of the world; `place` is that point in the link's own frame.

    Args:
        state: a pipeline state.
        link: its index in the robot's model.
    """
    return state.x.pos[link] + math.rotate(jnp.array(place), state.x.rot[link])


def unturned(vector: jax.Array, rotation: jax.Array) -> jax.Array:
    """A vector `[3]` of the world in the frame of a body with the rotation `[4]`, a quaternion (w, x, y, z)."""
    return math.inv_rotate(vector, rotation)


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
