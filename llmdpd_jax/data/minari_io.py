"""Reads Minari data sets, and refuses what training could not use."""

from collections.abc import Iterator

import gymnasium as gym
import minari
import numpy as np
from minari.storage import get_dataset_path

from llmdpd_jax.data.episodes import EpisodeReader, Episodes, Logged
from llmdpd_jax.errors import UserError


def read_episodes(dataset_id: str) -> Episodes:
    """All episodes of a Minari data set.

    Observations and actions are Box spaces of any rank, flattened; of a Dict observation space the entry
    "observation" is read, as goal-conditioned environments have it.

    Raises:
        UserError: the data set is not on disk or damaged, its spaces are of another kind, it has no episodes, an
            episode is empty or its arrays disagree in length, a value is not finite, or an action is outside its space.
    """
    return open_episodes(dataset_id).read_all()


def open_episodes(dataset_id: str) -> EpisodeReader:
    """As `read_episodes`, episode by episode. What is wrong with an episode is raised when it is read."""
    dataset = open_dataset(dataset_id)
    observation_box, key = _box(dataset.observation_space, dataset_id, "observation", allow_dict=True)
    action_box, _ = _box(dataset.action_space, dataset_id, "action")
    if dataset.total_episodes == 0:
        raise UserError(f"Minari data set {dataset_id!r} has no episodes")
    sizes = int(np.prod(observation_box.shape)), int(np.prod(action_box.shape))
    episodes = ((episode.id, _logged(episode, key, sizes, dataset_id)) for episode in _each(dataset, dataset_id))
    return EpisodeReader(dataset_id, f"Minari data set {dataset_id!r}", episodes, action_box.low, action_box.high)


def _each(dataset: minari.MinariDataset, dataset_id: str) -> Iterator[minari.EpisodeData]:
    try:
        yield from dataset
    except Exception as error:  # h5py and pyarrow raise many kinds on damaged files
        raise _damaged(dataset_id, error) from error


def open_dataset(dataset_id: str) -> minari.MinariDataset:
    """The data set of that id in Minari's folder. Raises `UserError` when it is not there or damaged."""
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


def _logged(episode, key: str | None, sizes: tuple[int, int], dataset_id: str) -> Logged:
    """One episode, with flat observations and actions."""
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
    flat = observations.reshape(steps + 1, -1), actions.reshape(steps, -1)
    return Logged(*flat, episode.rewards, episode.terminations)
