"""Point-maze data logged by a waypoint controller: what is written is all that training and evaluation need."""

import minari
import numpy as np
import pytest

from llmdpd_jax.data.environments import find_reference, make_environment
from llmdpd_jax.data.store import load_split
from llmdpd_jax.evaluation.gymnasium_rollout import recover_environments
from llmdpd_jax.tasks.manifest import load_manifest

pytest.importorskip("gymnasium_robotics", reason="extra `d4rl`")
pytestmark = pytest.mark.slow


def test_the_shortest_way_is_found(load_example):
    example = load_example("pointmaze_data")
    following = example.way_to((3, 1), example.MAZES["umaze"])
    way = [(1, 1)]
    while way[-1] != (3, 1):
        way.append(following[way[-1]])
    assert way == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert following[3, 1] == (3, 1) and len(following) == 7


def test_what_is_written(load_example, minari_root, tmp_path, monkeypatch):
    example = load_example("pointmaze_data")
    monkeypatch.setattr(example, "REFERENCE_EPISODES", 3)
    for _ in range(2):  # a second time in the place of the first
        example.main(["--maze=umaze", "--episodes=4", f"--out={tmp_path}"])
    manifest = load_manifest(tmp_path)
    assert [task.split for task in manifest.tasks].count("test") == 1 and len(manifest.tasks) == 7
    task = manifest.tasks[0]
    x, y = task.parameters["x"], task.parameters["y"]
    assert f"Go to ({x:g}, {y:g})" in task.descriptions and len(task.held_out_descriptions) == 2

    env = make_environment(task, "m")
    goals = np.array([env.reset(seed=seed)[0]["desired_goal"] for seed in range(5)])
    assert (np.abs(goals - [x, y]) <= 0.25).all() and (np.ptp(goals, axis=0) > 0.01).all()
    reference = find_reference(task, "m")
    assert reference.expert > 50 > 20 > reference.random, "of 150 steps, those near the goal"
    assert [spec.max_episode_steps for spec in recover_environments(manifest, 4, 2).values()] == [150] * 7

    data = load_split(manifest, "train", progress=False)
    assert data.store.lengths.tolist() == [150] * 24 and data.observation_size == 4
    assert not data.store.terminations.any()
    np.testing.assert_array_equal([data.action_low, data.action_high], [[-1, -1], [1, 1]])
    # The logged steps are what the recovered environment does with the logged actions.
    (logged,) = minari.load_dataset(task.dataset).iterate_episodes([1])
    observation, _ = env.reset(seed=3 + 1)
    for step, action in enumerate(logged.actions):
        np.testing.assert_allclose(observation["observation"], logged.observations["observation"][step])
        observation, reward, *_ = env.step(action)
        assert reward == logged.rewards[step]
