"""Reads Minari data sets into padded arrays, and refuses what training could not use."""

from dataclasses import dataclass

import gymnasium as gym
import minari
import numpy as np
from minari.storage import get_dataset_path

from llmdpd_jax.errors import UserError

# Actions may leave their bounds by this share of the range: float64 logs of float32 policies do.
_BOUND_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Episodes:
    """The episodes of one data set, padded with zeros to the longest."""

    dataset: str  # Minari id
    observations: np.ndarray  # [E, T + 1, O] float32
    actions: np.ndarray  # [E, T, A] float32
    rewards: np.ndarray  # [E, T] float32
    terminations: np.ndarray  # [E, T] bool
    lengths: np.ndarray  # [E] int32, number of actions
    action_low: np.ndarray  # [A] float32, -inf where unbounded
    action_high: np.ndarray  # [A] float32


def read_episodes(dataset_id: str) -> Episodes:
    """All episodes of a Minari data set.

    Observations and actions are Box spaces of any rank, flattened; of a Dict observation space the entry
    "observation" is read, as goal-conditioned environments have it.

    Raises:
        UserError: the data set is not on disk or damaged, its spaces are of another kind, it has no episodes, an
            episode is empty or its arrays disagree in length, a value is not finite, or an action is outside its space.
    """
    dataset = _open(dataset_id)
    observation_box, key = _box(dataset.observation_space, dataset_id, "observation", allow_dict=True)
    action_box, _ = _box(dataset.action_space, dataset_id, "action")
    if dataset.total_episodes == 0:
        raise UserError(f"Minari data set {dataset_id!r} has no episodes")
    try:
        logged = list(dataset)
    except Exception as error:  # h5py and pyarrow raise many kinds on damaged files
        raise _damaged(dataset_id, error) from error
    sizes = int(np.prod(observation_box.shape)), int(np.prod(action_box.shape))
    rows = [_row(episode, key, sizes, dataset_id) for episode in logged]
    lengths = np.array([len(row[2]) for row in rows], np.int32)
    time = int(lengths.max())
    episodes = Episodes(
        dataset=dataset_id,
        observations=_pad([row[0] for row in rows], time + 1, np.float32),
        actions=_pad([row[1] for row in rows], time, np.float32),
        rewards=_pad([row[2] for row in rows], time, np.float32),
        terminations=_pad([row[3] for row in rows], time, bool),
        lengths=lengths,
        action_low=action_box.low.reshape(-1).astype(np.float32),
        action_high=action_box.high.reshape(-1).astype(np.float32),
    )
    _check_values(episodes, [episode.id for episode in logged])
    return episodes


def _open(dataset_id: str) -> minari.MinariDataset:
    try:
        return minari.load_dataset(dataset_id)
    except FileNotFoundError:
        raise UserError(
            f"Minari data set {dataset_id!r} not found in {get_dataset_path()} (set by MINARI_DATASETS_PATH). "
            f"Write it with `llmdpd collect`, or fetch a published one with `minari download {dataset_id}`"
        ) from None
    except Exception as error:  # metadata of any kind of damage
        raise _damaged(dataset_id, error) from error


def _damaged(dataset_id: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}"
    return UserError(
        f"Minari data set {dataset_id!r} in {get_dataset_path(dataset_id)} cannot be read, so it is damaged or half "
        f"written ({reason[:200]}). Delete that folder and collect or download it again"
    )


def _box(space: gym.Space, dataset_id: str, what: str, allow_dict: bool = False) -> tuple[gym.spaces.Box, str | None]:
    """The Box to read, and under which key of a Dict space it is."""
    key = None
    if allow_dict and isinstance(space, gym.spaces.Dict) and "observation" in space.spaces:
        space, key = space["observation"], "observation"
    if not isinstance(space, gym.spaces.Box):
        also = ', or Dict with a Box entry "observation"' if allow_dict else ""
        raise UserError(f"Minari data set {dataset_id!r}: the {what} space must be Box{also}; found {space!s:.120}")
    return space, key


def _row(episode, key: str | None, sizes: tuple[int, int], dataset_id: str) -> tuple[np.ndarray, ...]:
    """Flat observations `[t + 1, O]`, actions `[t, A]`, rewards `[t]` and terminations `[t]` of one episode."""
    where = f"Minari data set {dataset_id!r}, episode {episode.id}"
    steps = len(episode.rewards)
    if steps == 0:
        raise UserError(f"{where}: has no steps")
    observations = np.asarray(episode.observations if key is None else episode.observations[key])
    actions = np.asarray(episode.actions)
    for what, array, length, size in (
        ("observations", observations, steps + 1, sizes[0]),
        ("actions", actions, steps, sizes[1]),
        ("terminations", np.asarray(episode.terminations), steps, 1),
    ):
        if len(array) != length:
            raise UserError(f"{where}: {steps} rewards need {length} {what}, found {len(array)}")
        if array.size != length * size:
            raise UserError(f"{where}: each of {what} must hold {size} numbers, found shape {array.shape[1:]}")
    return observations.reshape(steps + 1, -1), actions.reshape(steps, -1), episode.rewards, episode.terminations


def _pad(rows: list[np.ndarray], time: int, dtype: type) -> np.ndarray:
    padded = np.zeros((len(rows), time, *rows[0].shape[1:]), dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _check_values(episodes: Episodes, ids: list[int]) -> None:
    """Raises at the first value that is not finite, or action outside its bounds."""

    def refuse(what: str, bad: np.ndarray, array: np.ndarray, rule: str) -> None:
        if bad.any():
            episode, step, *rest = (int(i) for i in np.argwhere(bad)[0])
            place = f"step {step}" + (f", dimension {rest[0]}" if rest else "")
            raise UserError(
                f"Minari data set {episodes.dataset!r}, episode {ids[episode]}: {what} at {place} is "
                f"{array[(episode, step, *rest)]}; {rule}"
            )

    for what in ("observations", "actions", "rewards"):
        array = getattr(episodes, what)
        refuse(what.removesuffix("s"), ~np.isfinite(array), array, "every value must be a finite number")
    low, high = episodes.action_low, episodes.action_high
    with np.errstate(invalid="ignore"):
        slack = np.nan_to_num(_BOUND_TOLERANCE * (high - low), posinf=0.0)
    real = np.arange(episodes.actions.shape[1]) < episodes.lengths[:, None]
    outside = ((episodes.actions < low - slack) | (episodes.actions > high + slack)) & real[..., None]
    bounds = f"low {low.tolist()}, high {high.tolist()}"
    refuse("action", outside, episodes.actions, f"the action space has {bounds}")
