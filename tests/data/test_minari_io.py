"""Reading Minari data sets, and every message about data that cannot be used."""

import gymnasium as gym
import h5py
import numpy as np
import pytest
from logged import make_episode
from minari.storage import get_dataset_path

from llmdpd_jax.data.minari_io import read_episodes
from llmdpd_jax.errors import UserError


def main_file(name):
    return get_dataset_path(name) / "data" / "main_data.hdf5"


def test_episodes_are_padded_with_zeros(write_dataset):
    write_dataset("two-v0", [make_episode(3, tag=5), make_episode(2, tag=-7, ends=True)])
    episodes = read_episodes("two-v0")
    assert episodes.lengths.tolist() == [3, 2]
    np.testing.assert_allclose(episodes.observations[0, :, 1], [5, 5.01, 5.02, 5.03])
    np.testing.assert_allclose(episodes.observations[1, :, 2], [-7, -6.99, -6.98, 0])
    np.testing.assert_allclose(episodes.actions[1], [[0, 0], [0.01, 0.01], [0, 0]])
    np.testing.assert_allclose(episodes.rewards, [[5, 4.99, 4.98], [-7, -7.01, 0]])
    assert episodes.terminations.tolist() == [[False] * 3, [False, True, False]]
    assert episodes.action_low.tolist() == [-1, -1] and episodes.action_high.tolist() == [1, 1]


def test_boxes_of_any_rank_are_flattened_in_c_order(write_dataset):
    episode = make_episode(2, observation_shape=(2, 3), action_shape=(1, 2))
    episode["observations"] = np.arange(18.0).reshape(3, 2, 3)
    write_dataset("flat-v0", [episode], gym.spaces.Box(0, 99, (2, 3)), gym.spaces.Box(-1, 1, (1, 2)))
    episodes = read_episodes("flat-v0")
    np.testing.assert_array_equal(episodes.observations[0], np.arange(18).reshape(3, 6))
    assert episodes.actions.shape == (1, 2, 2) and episodes.observations.dtype == np.float32


def test_scalar_boxes_become_one_dimension(write_dataset):
    write_dataset(
        "scalar-v0",
        [make_episode(2, tag=4, observation_shape=(), action_shape=())],
        gym.spaces.Box(0, 9, ()),
        gym.spaces.Box(-1, 1, ()),
    )
    episodes = read_episodes("scalar-v0")
    np.testing.assert_allclose(episodes.observations, [[[4], [4.01], [4.02]]])
    assert episodes.actions.shape == (1, 2, 1)


def test_dict_observations_give_their_observation(write_dataset):
    episode = make_episode(2, tag=1)
    episode["observations"] = {"observation": episode["observations"], "desired_goal": np.full((3, 1), 9.0)}
    goal = gym.spaces.Box(-9, 9, (1,))
    space = gym.spaces.Dict(observation=gym.spaces.Box(-9, 9, (3,)), desired_goal=goal)
    write_dataset("goal-v0", [episode], space)
    np.testing.assert_allclose(read_episodes("goal-v0").observations[0, :, 0], [1, 1.01, 1.02])


def test_missing_data_set_names_folder_and_remedy(minari_root):
    with pytest.raises(UserError) as error:
        read_episodes("absent-v0")
    for part in (
        "'absent-v0'",
        str(minari_root),
        "MINARI_DATASETS_PATH",
        "llmdpd collect",
        "minari download absent-v0",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("field", "place", "value", "message"),
    [
        ("observations", (1, 2), np.nan, r"episode 1: observation at step 1, dimension 2 is nan; .*finite"),
        ("observations", (3, 0), np.inf, r"episode 1: observation at step 3, dimension 0 is inf"),
        ("actions", (0, 1), np.nan, r"episode 1: action at step 0, dimension 1 is nan"),
        ("actions", (2, 0), 1.5, r"episode 1: action at step 2, dimension 0 is 1.5; the action space has low \[-1.0"),
        ("actions", (2, 1), -1.1, r"episode 1: action at step 2, dimension 1 is -1.1"),
        ("rewards", (1,), np.nan, r"episode 1: reward at step 1 is nan"),
    ],
)
def test_bad_values_name_data_set_episode_and_place(write_dataset, field, place, value, message):
    episodes = [make_episode(3), make_episode(3)]
    episodes[1][field][place] = value
    write_dataset("bad-v0", episodes)
    with pytest.raises(UserError, match=f"'bad-v0', {message}"):
        read_episodes("bad-v0")


def test_rounding_beyond_the_bounds_is_accepted(write_dataset):
    episode = make_episode(2)
    episode["actions"] = np.array([[1 + 1e-6, -1 - 1e-6], [1, -1]])
    write_dataset("edge-v0", [episode])
    np.testing.assert_allclose(read_episodes("edge-v0").actions[0], [[1, -1], [1, -1]], atol=2e-6)


def test_bounds_that_exclude_zero_do_not_refuse_padding(write_dataset):
    episodes = [make_episode(1), make_episode(2)]
    for episode in episodes:
        episode["actions"] += 0.5
    write_dataset("shifted-v0", episodes, action_space=gym.spaces.Box(0.4, 1, (2,)))
    assert read_episodes("shifted-v0").lengths.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"action_space": gym.spaces.Discrete(4)}, r"the action space must be Box; found Discrete\(4\)"),
        ({"observation_space": gym.spaces.Discrete(4)}, "observation space must be Box, or Dict .*found Discrete"),
        ({"observation_space": gym.spaces.Dict(pixels=gym.spaces.Box(0, 1, (3,)))}, "found Dict"),
    ],
)
def test_other_spaces_are_refused(write_dataset, spaces, message):
    episode = make_episode(2)
    if "observation_space" in spaces and isinstance(spaces["observation_space"], gym.spaces.Dict):
        episode["observations"] = {"pixels": episode["observations"]}
    write_dataset("space-v0", [episode], **spaces)
    with pytest.raises(UserError, match=f"'space-v0': .*{message}"):
        read_episodes("space-v0")


def test_no_episodes(write_dataset):
    write_dataset("none-v0", [])
    with pytest.raises(UserError, match="'none-v0' has no episodes"):
        read_episodes("none-v0")


def test_empty_episode(write_dataset):
    write_dataset("empty-v0", [make_episode(2), make_episode(2)])
    with h5py.File(main_file("empty-v0"), "a") as file:
        for name in ("actions", "rewards", "terminations", "truncations"):
            file["episode_1"][name].resize(0, axis=0)
        file["episode_1"]["observations"].resize(1, axis=0)
    with pytest.raises(UserError, match="'empty-v0', episode 1: has no steps"):
        read_episodes("empty-v0")


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("observations", 3, "3 rewards need 4 observations, found 3"),
        ("actions", 2, "3 rewards need 3 actions, found 2"),
        ("terminations", 2, "3 rewards need 3 terminations, found 2"),
    ],
)
def test_lengths_that_disagree(write_dataset, name, length, message):
    write_dataset("short-v0", [make_episode(3)])
    with h5py.File(main_file("short-v0"), "a") as file:
        file["episode_0"][name].resize(length, axis=0)
    with pytest.raises(UserError, match=f"'short-v0', episode 0: {message}"):
        read_episodes("short-v0")


def test_values_of_another_size_than_the_space(write_dataset):
    write_dataset("size-v0", [make_episode(3, action_shape=(4,))])
    with pytest.raises(
        UserError, match=r"'size-v0', episode 0: each of actions must hold 2 numbers, found shape \(4,\)"
    ):
        read_episodes("size-v0")


def test_damaged_files_are_named(write_dataset):
    for damage in ("truncated", "no_file", "lost_episode", "metadata"):
        name = f"{damage}-v0"
        write_dataset(name, [make_episode(3), make_episode(3)])
        if damage == "truncated":
            main_file(name).write_bytes(main_file(name).read_bytes()[:3000])
        elif damage == "no_file":
            main_file(name).unlink()
        elif damage == "lost_episode":
            with h5py.File(main_file(name), "a") as file:
                del file["episode_1"]
        else:
            (get_dataset_path(name) / "data" / "metadata.json").write_text('{"total_epis')
        with pytest.raises(UserError, match=f"{name!r} in .*{name} cannot be read, so it is damaged .*Delete that"):
            read_episodes(name)
