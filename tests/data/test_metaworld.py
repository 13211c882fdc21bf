"""Meta-World with the package: what the policy sees, who logs, what is written, and that a manifest evaluates."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.storage import get_dataset_path

from llmdpd_jax.cli.main import main
from llmdpd_jax.data.logs import collected
from llmdpd_jax.data.metaworld import collect_metaworld
from llmdpd_jax.data.store import load_split
from llmdpd_jax.evaluation.gymnasium_rollout import recover_environments
from llmdpd_jax.evaluation.results import load_results
from llmdpd_jax.tasks.manifest import load_manifest
from llmdpd_jax.tasks.metaworld.behaviour import make_policy, noise
from llmdpd_jax.tasks.metaworld.environment import ENV_ID, GOAL, MetaWorldTask, draw_places
from llmdpd_jax.tasks.metaworld.sets import ML10, ML45, SCENES

metaworld = pytest.importorskip("metaworld", reason="extra `metaworld`")
SET = "metaworld-ml1-reach-v3"


def collect_few(out, **changes):
    """Two train goals and a test goal, three episodes of 60 steps each: enough to reach them."""
    arguments = {"quality": "mixed", "episodes": 3, "seed": 0, "horizon": 60, "goals": (2, 1), "workers": 1}
    return collect_metaworld(SET, out=out, progress=False, **{**arguments, **changes})


def arrays(manifest):
    """Everything logged, by task and episode."""
    return [
        [episode.observations, episode.actions, episode.rewards]
        for task in manifest.tasks
        for episode in minari.load_dataset(task.dataset)
    ]


def assert_equal_arrays(some, others):
    for one, other in zip(some, others, strict=True):
        for mine, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, expected)


def test_sets_are_those_of_the_package():
    assert set(SCENES) == set(metaworld.ALL_V3_ENVIRONMENTS)
    for ours, theirs in ((ML10, metaworld.env_dict.ML10_V3), (ML45, metaworld.env_dict.ML45_V3)):
        assert set(ours.train) == set(theirs["train"]) and set(ours.test) == set(theirs["test"])


def test_goals_are_always_the_same_and_unseen_ones_are_others():
    train, test = (draw_places("push-v3", split, 4) for split in ("train", "test"))
    assert train[:2] == draw_places("push-v3", "train", 2), "more of them begin with fewer"
    goals = np.array([goal for _, goal in (*train, *test)])
    apart = np.linalg.norm(goals[:, None] - goals[None], axis=-1)[~np.eye(8, dtype=bool)]
    assert apart.min() > 1e-3


@pytest.mark.parametrize("scene", ["push-v3", "drawer-open-v3"])
def test_the_goal_is_hidden_from_the_policy_and_shown_to_the_expert(scene):
    """Observations and rewards are those of the package's own environment with a hidden goal."""
    ((vector, goal),) = draw_places(scene, "train", 1)
    env = gym.make(ENV_ID, scene=scene, vector=vector)
    theirs = metaworld.env_dict.ALL_V3_ENVIRONMENTS_GOAL_HIDDEN[f"{scene}-goal-hidden"]()
    theirs._last_rand_vec = np.array(vector)
    expert = make_policy(scene, 0.3, seed=0)
    (observation, _), (expected, _) = env.reset(seed=0), theirs.reset()
    for _ in range(40):
        np.testing.assert_array_equal(observation[GOAL], 0.0)
        np.testing.assert_allclose(observation, expected, atol=1e-6)
        np.testing.assert_allclose(env.unwrapped.seen_by_expert[GOAL], goal, atol=1e-9)
        action = expert(env.unwrapped.seen_by_expert)
        observation, reward, terminated, truncated, info = env.step(action)
        expected, expected_reward, _, _, expected_info = theirs.step(action)
        assert reward == pytest.approx(expected_reward) and info["success"] == expected_info["success"]
        assert not terminated and not truncated
    assert env.unwrapped.goal == pytest.approx(goal)


def test_tasks_that_differ_in_their_goal_alone_look_the_same():
    vector = np.array(draw_places("reach-v3", "train", 1)[0][0])
    seen = []
    for shift in (0.0, 0.04):
        env = MetaWorldTask("reach-v3", [*vector[:5], vector[5] - shift])
        seen.append(env.reset()[0])
    np.testing.assert_array_equal(*seen)


def test_noise_falls_with_progress():
    assert [noise("mixed", p) for p in (0.0, 0.5, 1.0)] == [2.0, 0.5, 0.0]
    assert [noise("replay", p) for p in (0.0, 1.0)] == [2.0, 1.0] and noise("medium", 0.3) == 1.0
    assert noise("random", 1.0) is None and noise("expert", 0.0) == 0.0


def success_and_return(env, policy):
    """Of an episode of 150 steps: whether the goal was reached at some step, and the sum of rewards."""
    env.reset()
    steps = [env.step(policy(env.seen_by_expert)) for _ in range(150)]
    return max(info["success"] for *_, info in steps) == 1.0, sum(reward for _, reward, *_ in steps)


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["reach-v3", "push-v3", "pick-place-v3", "peg-insert-side-v3", "drawer-close-v3"])
def test_the_expert_reaches_goals_and_a_random_policy_does_not(scene):
    """Also in the scenes that blind it where the goal is hidden. It misses some goals, which are Meta-World's own."""
    envs = [MetaWorldTask(scene, vector) for vector, _ in draw_places(scene, "test", 3)]
    scripted = make_policy(scene, 0.0, seed=0)

    def blindfolded(seen):
        return scripted(np.where(np.arange(39) < GOAL.start, seen, 0.0))

    expert, random, blind = (
        [success_and_return(env, policy) for env in envs]
        for policy in (scripted, make_policy(scene, None, seed=0), blindfolded)
    )
    assert sum(reached for reached, _ in expert) >= 2 > sum(reached for reached, _ in random)
    for (_, mine), (_, other) in zip(expert, random, strict=True):
        assert mine > 2 * other
    if scene != "drawer-close-v3":
        assert sum(reached for reached, _ in blind) == 0


@pytest.mark.slow
def test_what_is_written(minari_root, tmp_path):
    collection = collect_few(tmp_path)
    assert not collection.reused and 0 < collection.mean_score < 110
    manifest = load_manifest(tmp_path)
    assert manifest == collection.manifest
    assert (manifest.family, manifest.env, manifest.horizon) == (SET, None, 60)
    assert [(task.name, task.split) for task in manifest.tasks] == [
        ("reach-v3-train-00", "train"),
        ("reach-v3-train-01", "train"),
        ("reach-v3-test-00", "test"),
    ]
    assert collected(SET) == {"mixed-h60-e3-s0": 3}
    for task in manifest.tasks:
        x = task.parameters["goal_x"]
        assert f"x = {x:.3f}" in task.descriptions[0] and not set(task.descriptions) & set(task.held_out_descriptions)
        assert task.reference.expert > 2 * task.reference.random > 0
        env = gym.make(**task.gym_env)
        dataset = minari.load_dataset(task.dataset)
        assert dataset.total_episodes == 3 and dataset.total_steps == 180
        for episode in dataset:
            observation, _ = env.reset()
            np.testing.assert_array_equal(episode.observations[:, GOAL], 0.0)
            assert not episode.terminations.any() and episode.truncations.tolist() == [False] * 59 + [True]
            for step, action in enumerate(episode.actions):  # the log is what the environment does
                np.testing.assert_allclose(episode.observations[step], observation, atol=1e-6)
                observation, reward, *_ = env.step(action)
                assert reward == pytest.approx(episode.rewards[step], rel=1e-6)
    last = minari.load_dataset(manifest.tasks[0].dataset)[2]
    assert last.rewards.sum() == pytest.approx(manifest.tasks[0].reference.expert, rel=1e-6), "without noise at last"
    data = load_split(manifest, "train", progress=False)
    assert data.observation_size == 39 and data.store.lengths.tolist() == [60] * 6
    specs = recover_environments(manifest, 39, 4)
    assert {spec.max_episode_steps for spec in specs.values()} == {60}


@pytest.mark.slow
def test_same_seed_same_arrays_in_any_number_of_processes(minari_root, tmp_path, monkeypatch):
    one = collect_few(tmp_path)
    others = collect_few(tmp_path, seed=1)
    again = collect_few(tmp_path / "again", goals=(1, 1))
    assert again.reused and again.manifest.tasks[0] == one.manifest.tasks[0]
    assert [t.reference for t in others.manifest.tasks] == [t.reference for t in one.manifest.tasks]
    first, other = arrays(one.manifest), arrays(others.manifest)
    assert np.abs(first[0][1] - other[0][1]).mean() > 0.1
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    two = collect_few(tmp_path, workers=2)
    assert two.manifest == one.manifest
    assert_equal_arrays(arrays(two.manifest), first)


def processes_of_group(group):
    """How many processes of a group are alive."""
    count = 0
    for status in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            ended = Path(f"/proc/{status}/stat").read_text().split(") ")[1].startswith("Z")
            count += os.getpgid(int(status)) == group and not ended
    return count


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are counted in /proc")
def test_a_killed_collection_goes_on(minari_root, tmp_path, monkeypatch, subprocess_environment):
    """SIGKILL: its processes end, complete data sets are kept, half-written ones are written again."""
    command = ["collect", f"--family={SET}", "--episodes=3", "--horizon=60", "--goals", "6", "1", f"--out={tmp_path}"]
    environment = subprocess_environment | {"MINARI_DATASETS_PATH": str(minari_root)}
    run = subprocess.Popen(
        [sys.executable, "-m", "llmdpd_jax", *command, "--workers=2"],
        env=environment,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while run.poll() is None and sum(collected(SET).values()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (tmp_path / "tasks.json").exists()
    while processes_of_group(run.pid):
        assert time.monotonic() < deadline, "processes outlive the one that started them"
        time.sleep(0.1)

    written = sorted(minari_root.glob(f"{SET}/*/*-v0"))
    complete = sum(collected(SET).values())
    assert 2 <= complete < 7
    half = written[0] / "data" / "metadata.json"
    half.write_text(json.dumps({k: v for k, v in json.loads(half.read_text()).items() if k != "llmdpd_collect"}))
    kept = {f: f.stat().st_mtime_ns for f in minari_root.rglob("main_data.hdf5") if written[0] not in f.parents}
    assert main([*command, "--workers=1"]) == 0
    assert sum(f.stat().st_mtime_ns == time_before for f, time_before in kept.items()) >= complete - 1
    resumed = arrays(load_manifest(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "undisturbed"))
    assert main([*command, "--workers=1"]) == 0
    assert_equal_arrays(arrays(load_manifest(tmp_path)), resumed)
    assert get_dataset_path(SET).is_dir()


@pytest.mark.slow
def test_a_policy_is_trained_and_scored_by_the_manifest(world, capsys):
    folder = world.folder / "metaworld"
    command = ["collect", f"--family={SET}", "--episodes=2", "--horizon=20", "--goals", "2", "1", f"--out={folder}"]
    assert main(command) == 0
    assert "next: llmdpd train --config=configs/metaworld.py" in capsys.readouterr().out
    path = folder / "tasks.json"
    manifest = json.loads(path.read_text())
    for task in manifest["tasks"]:  # to be read sooner
        task["descriptions"], task["held_out_descriptions"] = (
            task["descriptions"][:2],
            task["held_out_descriptions"][:1],
        )
    path.write_text(json.dumps(manifest))
    assert main(["train", *world.config(data__manifest=path), f"--out={folder / 'run'}"]) == 0
    assert main(["evaluate", str(folder / "run"), "--episodes=2", "--workers=2"]) == 0
    results = load_results(folder / "run")
    assert {row.split for row in results.rows} == {"train", "test"}
    for row in results.rows:
        assert len(row.returns) == len(row.success) == 2 and all(0 < value < 200 for value in row.returns)
