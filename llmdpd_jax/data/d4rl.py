"""Reads D4RL's HDF5 files: one long log of steps, to be cut into episodes."""

from itertools import pairwise

import h5py
import numpy as np

from llmdpd_jax.data.episodes import Episodes, Logged, pad_episodes
from llmdpd_jax.errors import UserError

_NEEDED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")


def read_d4rl(path: str) -> Episodes:
    """All episodes of a D4RL file, without bounds of the actions, which the file does not hold.

    A terminal ends an episode for good; a timeout only cuts it, so what would have followed still counts. A file
    without "timeouts" is cut where "next_observations" of a step is not the observation of the next one. What follows
    the last cut is an episode, too. Without "next_observations" the file does not tell where the last step of an
    episode led: that step is left out where the episode was cut, and where it terminated leads to its own observation.

    Raises:
        UserError: no such file, or it is damaged, lacks arrays (then all are named), holds arrays of differing length
            or no step, or neither "timeouts" nor "next_observations"; a value that is not finite.
    """
    where = f"D4RL file {path}"
    arrays = _read(path, where)
    steps = len(arrays["rewards"])
    lengths = {name: len(array) for name, array in arrays.items()}
    if steps == 0 or set(lengths.values()) != {steps}:
        raise UserError(f"{where}: its arrays must be of one length, at least 1, found {lengths}")
    terminals = arrays["terminals"].reshape(steps).astype(bool)
    rewards = arrays["rewards"].reshape(steps)
    observations, actions = (arrays[name].reshape(steps, -1) for name in ("observations", "actions"))
    following = arrays.get("next_observations")
    if following is not None:
        following = following.reshape(steps, -1)
    if "timeouts" in arrays:
        cuts = terminals | arrays["timeouts"].reshape(steps).astype(bool)
    elif following is not None:
        cuts = terminals.copy()
        cuts[:-1] |= ~np.isclose(following[:-1], observations[1:]).all(axis=1)
    else:
        raise UserError(f'{where}: holds neither "timeouts" nor "next_observations", so where episodes end is not told')
    cuts[-1] = True

    logged = []
    for start, end in pairwise([0, *(np.flatnonzero(cuts) + 1).tolist()]):
        if following is not None:
            last = following[end - 1]
        else:
            last = observations[end - 1]
            end -= not terminals[end - 1]
        if end > start:
            seen = np.concatenate([observations[start:end], last[None]])
            logged.append(Logged(seen, actions[start:end], rewards[start:end], terminals[start:end]))
    if not logged:
        raise UserError(f"{where}: no episode has a step whose next observation is known")
    unbounded = np.full(actions.shape[1], np.inf)
    return pad_episodes(path, where, logged, range(len(logged)), -unbounded, unbounded)


def _read(path: str, where: str) -> dict[str, np.ndarray]:
    """The arrays of the file that count."""
    try:
        with h5py.File(path) as file:
            found = [name for name in (*_NEEDED, *_OPTIONAL) if isinstance(file.get(name), h5py.Dataset)]
            missing = [name for name in _NEEDED if name not in found]
            if missing:
                raise UserError(f"{where}: lacks {', '.join(missing)}; it holds {', '.join(file) or 'nothing'}")
            return {name: file[name][()] for name in found}
    except FileNotFoundError:
        raise UserError(
            f"{where}: no such file. Download it and put it there, or name the Minari id of a data set instead"
        ) from None
    except (OSError, RuntimeError) as error:  # h5py raises both on damaged files
        raise UserError(f"{where}: cannot be read, so it is damaged or half written ({error!s:.200})") from None
