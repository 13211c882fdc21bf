"""Reads D4RL's HDF5 files: one long log of steps, to be cut into episodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import h5py
import numpy as np

from llmdpd_jax.data.episodes import EpisodeReader, Episodes, Logged
from llmdpd_jax.errors import UserError

_NEEDED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_BLOCK = 65_536  # steps that are compared at a time
_CHUNK_CACHE = 2**25  # bytes per array: a compressed block is not to be unpacked anew for every episode in it


def read_d4rl(path: str) -> Episodes:
    """All episodes of a D4RL file, without bounds of the actions, which the file does not hold.

    A terminal ends an episode for good; a timeout only cuts it, so what would have followed still counts. A file
    without "timeouts" is cut where "next_observations" of a step is not the observation of the next one. What follows
    the last cut is an episode, too. Without "next_observations" the file does not tell where the last step of an
    episode led: that step is left out where the episode was cut, and where it terminated leads to its own observation.

    Raises:
        UserError: no such file, or it is damaged, lacks arrays (then all are named), holds arrays of differing length,
            no step or anything but numbers, or neither "timeouts" nor "next_observations"; a value that is not finite.
    """
    return open_d4rl(path).read_all()


def open_d4rl(path: str) -> EpisodeReader:
    """As `read_d4rl`, episode by episode: only where episodes end is held in memory."""
    where = f"D4RL file {path}"
    with _open(path, where) as file:
        widths = {name: _width(name, array, where) for name, array in file.items()}
        if widths.get("next_observations", widths["observations"]) != widths["observations"]:
            raise UserError(
                f"{where}: next_observations hold {widths['next_observations']} numbers a step, observations hold "
                f"{widths['observations']}; they must be of one size"
            )
        lengths = {name: len(array) for name, array in file.items()}
        steps = lengths["rewards"]
        if steps == 0 or set(lengths.values()) != {steps}:
            raise UserError(f"{where}: its arrays must be of one length, at least 1, found {lengths}")
        terminals = _flags("terminals", file, where)
        if "timeouts" in file:
            cuts = terminals | _flags("timeouts", file, where)
        elif "next_observations" in file:
            cuts = terminals | _jumps(file["observations"], file["next_observations"])
        else:
            raise UserError(
                f'{where}: holds neither "timeouts" nor "next_observations", so where episodes end is not told'
            )
        unbounded = np.full(widths["actions"], np.inf)
    cuts[-1] = True
    ends = np.flatnonzero(cuts) + 1
    return EpisodeReader(path, where, enumerate(_each(path, where, ends, terminals)), -unbounded, unbounded)


def _width(name: str, array: h5py.Dataset, where: str) -> int:
    """How many numbers an array holds for each step. Raises UserError if it holds anything else, or not as many."""
    if not array.shape or array.dtype.kind not in "biuf":
        raise UserError(f"{where}: {name} must hold numbers for each step, found {array.dtype} of shape {array.shape}")
    width, one = int(np.prod(array.shape[1:])), name not in ("observations", "actions", "next_observations")
    if width < 1 or (one and width > 1):
        wanted = "one number" if one else "at least one number"
        raise UserError(f"{where}: {name} must hold {wanted} for each step, found shape {array.shape}")
    return width


def _flags(name: str, file: dict[str, h5py.Dataset], where: str) -> np.ndarray:
    """Whether each step is marked [N]."""
    values = file[name][()].reshape(-1)
    if not np.isfinite(values).all():
        step = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{where}: {name} at step {step} of the log is {values[step]}; it must be 0 or 1")
    return values.astype(bool)


def _jumps(observations: h5py.Dataset, following: h5py.Dataset) -> np.ndarray:
    """Whether what followed a step is not the observation of the next one [N]; False for the last."""
    jumps = np.zeros(len(observations), bool)
    for start in range(0, len(jumps) - 1, _BLOCK):
        end = min(start + _BLOCK, len(jumps) - 1)
        led_to, seen = (x.reshape(end - start, -1) for x in (following[start:end], observations[start + 1 : end + 1]))
        jumps[start:end] = ~np.isclose(led_to, seen).all(axis=1)
    return jumps


def _each(path: str, where: str, ends: np.ndarray, terminals: np.ndarray) -> Iterator[Logged]:
    found = False
    with _open(path, where) as file:
        following = file.get("next_observations")
        for start, end in pairwise([0, *ends.tolist()]):
            seen = file["observations"][start:end].reshape(end - start, -1)
            if following is not None:
                seen = np.concatenate([seen, following[end - 1].reshape(1, -1)])
            elif terminals[end - 1]:
                seen = np.concatenate([seen, seen[-1:]])
            else:
                end -= 1
            if end > start:
                found = True
                actions, rewards = file["actions"][start:end], file["rewards"][start:end]
                yield Logged(seen, actions.reshape(end - start, -1), rewards.reshape(end - start), terminals[start:end])
    if not found:
        raise UserError(f"{where}: no episode has a step whose next observation is known")


@contextmanager
def _open(path: str, where: str) -> Iterator[dict[str, h5py.Dataset]]:
    """The arrays of the file that count."""
    try:
        with h5py.File(path, rdcc_nbytes=_CHUNK_CACHE) as file:
            found = [name for name in (*_NEEDED, *_OPTIONAL) if isinstance(file.get(name), h5py.Dataset)]
            missing = [name for name in _NEEDED if name not in found]
            if missing:
                raise UserError(f"{where}: lacks {', '.join(missing)}; it holds {', '.join(file) or 'nothing'}")
            yield {name: file[name] for name in found}
    except FileNotFoundError:
        raise UserError(
            f"{where}: no such file. Download it and put it there, or name the Minari id of a data set instead"
        ) from None
    except (OSError, RuntimeError) as error:  # h5py raises both on damaged files
        raise UserError(f"{where}: cannot be read, so it is damaged or half written ({error!s:.200})") from None
