"""The episodes of one data set as padded arrays, whatever file they came from, and what training could not use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llmdpd_jax.errors import UserError

# Actions may leave their bounds by this share of the range: float64 logs of float32 policies do.
_BOUND_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Episodes:
    """The episodes of one data set, padded with zeros to the longest."""

    dataset: str  # Minari id or path
    observations: np.ndarray  # [E, T + 1, O] float32
    actions: np.ndarray  # [E, T, A] float32
    rewards: np.ndarray  # [E, T] float32
    terminations: np.ndarray  # [E, T] bool
    lengths: np.ndarray  # [E] int32, number of actions
    action_low: np.ndarray  # [A] float32, -inf where unbounded
    action_high: np.ndarray  # [A] float32


class Logged(NamedTuple):
    """One episode of t steps."""

    observations: np.ndarray  # [t + 1, O]
    actions: np.ndarray  # [t, A]
    rewards: np.ndarray  # [t]
    terminations: np.ndarray  # [t]


class EpisodeReader(NamedTuple):
    """A data set that is read episode by episode, so that it may be larger than the memory."""

    dataset: str  # Minari id or path
    where: str  # how messages name it
    episodes: Iterator[tuple[int, Logged]]  # each with the number that messages give it; read once
    low: np.ndarray  # [...] bounds of the actions, infinite where there is none
    high: np.ndarray

    def read_all(self) -> Episodes:
        """The whole data set. Raises as `pad_episodes` does, and whatever reading raises."""
        return pad_episodes(self, list(self.episodes))


def pad_episodes(reader: EpisodeReader, numbered: Sequence[tuple[int, Logged]]) -> Episodes:
    """The padded arrays of some episodes of a data set, at least one.

    Raises:
        UserError: a value is not finite, or an action is outside its bounds.
    """
    ids, logged = zip(*numbered, strict=True)
    lengths = np.array([len(episode.rewards) for episode in logged], np.int32)
    time = int(lengths.max())
    observations, actions, rewards, terminations = zip(*logged, strict=True)
    episodes = Episodes(
        dataset=reader.dataset,
        observations=_pad(observations, time + 1, np.float32),
        actions=_pad(actions, time, np.float32),
        rewards=_pad(rewards, time, np.float32),
        terminations=_pad(terminations, time, bool),
        lengths=lengths,
        action_low=reader.low.reshape(-1).astype(np.float32),
        action_high=reader.high.reshape(-1).astype(np.float32),
    )
    _check_values(episodes, reader.where, ids)
    return episodes


def _pad(rows: Sequence[np.ndarray], time: int, dtype: type) -> np.ndarray:
    padded = np.zeros((len(rows), time, *rows[0].shape[1:]), dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _check_values(episodes: Episodes, where: str, ids: Sequence[int]) -> None:
    """Raises at the first value that is not finite, or action outside its bounds."""

    def refuse(what: str, bad: np.ndarray, array: np.ndarray, rule: str) -> None:
        if bad.any():
            episode, step, *rest = (int(i) for i in np.argwhere(bad)[0])
            place = f"step {step}" + (f", dimension {rest[0]}" if rest else "")
            raise UserError(
                f"{where}, episode {ids[episode]}: {what} at {place} is {array[(episode, step, *rest)]}; {rule}"
            )

    for what in ("observations", "actions", "rewards"):
        array = getattr(episodes, what)
        refuse(what.removesuffix("s"), ~np.isfinite(array), array, "every value must be a finite number")
    low, high = episodes.action_low, episodes.action_high
    with np.errstate(invalid="ignore", over="ignore"):
        slack = np.nan_to_num(_BOUND_TOLERANCE * (high - low), posinf=0.0)
    real = np.arange(episodes.actions.shape[1]) < episodes.lengths[:, None]
    outside = ((episodes.actions < low - slack) | (episodes.actions > high + slack)) & real[..., None]
    bounds = f"low {low.tolist()}, high {high.tolist()}"
    refuse("action", outside, episodes.actions, f"the action space has {bounds}")
