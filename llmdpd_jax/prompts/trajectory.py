"""Trajectory prompts from arrays a user hands over."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.types import TrajectoryPrompt


def read_trajectory(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, for `make_trajectory_prompt`, which checks them.

    Raises:
      UserError: no such file, or another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a trajectory is read from an .npz file") from None
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:  # TypeError: an .npy file
        raise UserError(f"{path}: not an .npz file of observations, actions and rewards") from error


def make_trajectory_prompt(
    trajectory: Mapping[str, Any], observation_size: int, action_size: int, length: int, where: str
) -> TrajectoryPrompt:
    """A prompt [length, ...] from `observations` [T + 1, O], `actions` [T, A] and `rewards` [T], in the data's units.

    Of a longer trajectory the first `length` steps are used, a shorter one is padded.

    Raises:
      UserError: a missing field, a wrong shape or a value that is not finite; the message starts with `where`.
    """
    if not isinstance(trajectory, Mapping):
        raise UserError(f"{where}: expected a dict of arrays, found {type(trajectory).__name__}")
    missing = {"observations", "actions", "rewards"} - set(trajectory)
    if missing:
        raise UserError(f"{where}: missing {sorted(missing)}; give observations [T+1, O], actions [T, A], rewards [T]")
    arrays = {}
    for name in ("observations", "actions", "rewards"):
        try:
            arrays[name] = np.asarray(trajectory[name], np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {name} is not an array of numbers ({error})") from error
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{where}: {name} holds values that are not finite")
    steps = arrays["rewards"].shape[0] if arrays["rewards"].ndim == 1 else 0
    expected = {
        "observations": (steps + 1, observation_size),
        "actions": (steps, action_size),
        "rewards": (steps,),
    }
    for name, shape in expected.items():
        if steps == 0 or arrays[name].shape != shape:
            raise UserError(
                f"{where}: {name} has shape {arrays[name].shape}; expected observations [T+1, {observation_size}], "
                f"actions [T, {action_size}] and rewards [T] with T >= 1"
            )
    steps = min(steps, length)

    def pad(array: np.ndarray) -> jnp.ndarray:
        return jnp.asarray(np.pad(array[:steps], [(0, length - steps), *[(0, 0)] * (array.ndim - 1)]))

    return TrajectoryPrompt(
        observations=pad(arrays["observations"][:-1]),
        actions=pad(arrays["actions"]),
        rewards=pad(arrays["rewards"]),
        next_observations=pad(arrays["observations"][1:]),
        mask=jnp.arange(length) < steps,
    )


def absent_trajectory(observation_size: int, action_size: int) -> TrajectoryPrompt:
    """A trajectory prompt [1, 1, ...] that stands for none."""
    return TrajectoryPrompt(
        observations=jnp.zeros((1, 1, observation_size)),
        actions=jnp.zeros((1, 1, action_size)),
        rewards=jnp.zeros((1, 1)),
        next_observations=jnp.zeros((1, 1, observation_size)),
        mask=jnp.zeros((1, 1), bool),
    )
