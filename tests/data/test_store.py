"""The store's contents, its statistics, and that training cannot open test tasks."""

import gymnasium as gym
import numpy as np
import pytest
from logged import make_episode

from llmdpd_jax.data import store as store_module
from llmdpd_jax.data.normalise import normalise_action
from llmdpd_jax.data.store import load_split, statistics
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import Manifest, TaskEntry

MANIFEST = Manifest(
    (
        TaskEntry("a", "train", "a-v0"),
        TaskEntry("t", "test", "t-v0"),
        TaskEntry("b", "train", "b-v0"),
    )
)


def load(split, manifest=MANIFEST):
    return load_split(manifest, split, progress=False)


@pytest.fixture
def written(write_dataset):
    write_dataset("a-v0", [make_episode(3, tag=1), make_episode(2, tag=2, ends=True), make_episode(1, tag=3)])
    write_dataset("b-v0", [make_episode(4, tag=10), make_episode(4, tag=20)])
    write_dataset("t-v0", [make_episode(5, tag=1000)])


def test_contents(written):
    store = load("train").store
    assert store.observations.shape == (5, 5, 3) and store.actions.shape == (5, 4, 2)
    assert store.lengths.tolist() == [3, 2, 1, 4, 4]
    assert store.task_id.tolist() == [0, 0, 0, 1, 1]
    # Best return first: 3.99, 3 and 2.97; then 79.94 and about 40.
    assert store.task_episodes.tolist() == [[1, 2, 0], [4, 3, 4]]
    assert store.task_counts.tolist() == [3, 2]
    np.testing.assert_allclose(store.observations[1, :, 0], [2, 2.01, 2.02, 0, 0])
    np.testing.assert_allclose(store.rewards[4], [20, 19.99, 19.98, 19.97])
    np.testing.assert_allclose(store.actions[3, :, 1], [0, 0.01, 0.02, 0.03])
    # Episode 1 ended; the others met a time limit, which is no end.
    assert np.argwhere(store.terminations).tolist() == [[1, 1]]


def test_tasks_of_the_split_in_order(written):
    data = load("train")
    assert [task.name for task in data.split.tasks] == ["a", "b"]
    assert (data.observation_size, data.action_size) == (3, 2)
    with pytest.raises(UserError, match="task 't' is a test task and stays closed"):
        data.split.task("t")


def test_loading_for_training_opens_no_test_data(written, monkeypatch):
    opened = []
    real = store_module.read_episodes
    monkeypatch.setattr(store_module, "read_episodes", lambda name: opened.append(name) or real(name))
    load("train")
    assert opened == ["a-v0", "b-v0"]


def test_statistics_by_hand(written):
    data = load("train")
    found = statistics(data)
    tags, lengths = [1, 2, 3, 10, 20], [3, 2, 1, 4, 4]
    observations = np.concatenate([t + np.arange(n + 1) / 100 for t, n in zip(tags, lengths, strict=True)])
    rewards = np.concatenate([t - np.arange(n) / 100 for t, n in zip(tags, lengths, strict=True)])
    np.testing.assert_allclose(found.observation_mean, [observations.mean()] * 3, rtol=1e-6)
    np.testing.assert_allclose(found.observation_std, [observations.std()] * 3, rtol=1e-6)
    np.testing.assert_allclose([found.reward_mean, found.reward_std], [rewards.mean(), rewards.std()], rtol=1e-6)
    assert found.action_low.tolist() == [-1, -1] and found.action_high.tolist() == [1, 1]


def test_moments_of_some_episodes_at_a_time_are_those_of_all():
    values, lengths = (
        np.random.default_rng(0).normal(3, 2, (7, 5, 2)).astype(np.float32),
        np.array([5, 1, 3, 2, 5, 4, 1]),
    )
    found = store_module._moments(values, lengths, at_a_time=3)
    real = np.concatenate([episode[:length] for episode, length in zip(values, lengths, strict=True)])
    assert found.count == len(real)
    np.testing.assert_allclose(found.mean, real.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.std, real.std(axis=0, dtype=np.float64), rtol=1e-12)


def test_statistics_of_test_tasks_are_refused(written):
    with pytest.raises(UserError, match="statistics come from the train split only, not from 'test'"):
        statistics(load("test"))


def test_a_constant_dimension_gets_deviation_one(write_dataset):
    episodes = [make_episode(3, tag=1), make_episode(3, tag=2)]
    for episode in episodes:
        episode["observations"][:, 1] = 0.1
    write_dataset("a-v0", episodes)
    std = statistics(load("train", Manifest(MANIFEST.tasks[:1]))).observation_std
    assert std[1] == 1 and 0.4 < std[0] < 0.6


def test_unbounded_actions_get_the_logged_range(write_dataset):
    episodes = [make_episode(3), make_episode(1)]
    for episode in episodes:
        episode["actions"] += 2
    write_dataset("a-v0", episodes, action_space=gym.spaces.Box(-np.inf, np.array([5, np.inf], np.float32), (2,)))
    found = statistics(load("train", Manifest(MANIFEST.tasks[:1])))
    np.testing.assert_allclose(found.action_low, [2, 2])
    np.testing.assert_allclose(found.action_high, [5, 2.02])


def test_bounds_too_far_apart_to_normalise_are_none(write_dataset):
    most = np.finfo(np.float32).max
    low, high = np.array([-most, -most / 3], np.float32), np.array([most, most / 3], np.float32)
    write_dataset("a-v0", [make_episode(3), make_episode(1)], action_space=gym.spaces.Box(low, high))
    data = load("train", Manifest(MANIFEST.tasks[:1]))
    found = statistics(data)
    np.testing.assert_array_equal([found.action_low, found.action_high], [data.action_low, data.action_high])
    np.testing.assert_allclose(found.action_high, [0.02, 0.02])
    assert np.isfinite(normalise_action(found, data.store.actions)).all()


def test_a_train_task_needs_a_second_episode_for_its_prompt(write_dataset):
    write_dataset("a-v0", [make_episode(3), make_episode(3)])
    write_dataset("b-v0", [make_episode(3)])
    write_dataset("t-v0", [make_episode(3)])
    assert load("test").store.task_counts.tolist() == [1]
    with pytest.raises(
        UserError, match=r"task 'b' \(Minari data set 'b-v0'\): has 1 episode; a train task needs at least 2"
    ):
        load("train")


def test_split_without_tasks():
    with pytest.raises(UserError, match='no task has "split": "test"'):
        load("test", Manifest(MANIFEST.tasks[:1]))


@pytest.mark.parametrize(
    ("shapes", "spaces", "message"),
    [
        (
            {"observation_shape": (4,)},
            {"observation_space": gym.spaces.Box(-9, 9, (4,))},
            "observations hold 4 numbers, those of 'a-v0' hold 3",
        ),
        (
            {"action_shape": (1,)},
            {"action_space": gym.spaces.Box(-1, 1, (1,))},
            "actions hold 1 numbers, those of 'a-v0' hold 2",
        ),
        (
            {},
            {"action_space": gym.spaces.Box(-1, 2, (2,))},
            r"action high bound is \[2.0, 2.0\], that of 'a-v0' is \[1.0",
        ),
    ],
)
def test_tasks_must_share_their_spaces(write_dataset, shapes, spaces, message):
    write_dataset("a-v0", [make_episode(3), make_episode(3)])
    write_dataset("b-v0", [make_episode(3, **shapes), make_episode(3, **shapes)], **spaces)
    with pytest.raises(UserError, match=f"task 'b'.*'b-v0'.*: {message}"):
        load("train")
