"""Evaluation in Gymnasium environments that data sets or manifests name."""

import json
import warnings
from types import SimpleNamespace

import gymnasium as gym
import jax.numpy as jnp
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from minari.storage import get_dataset_path

from llmdpd_jax import load_policy
from llmdpd_jax.agents.diffusion_ql import Context
from llmdpd_jax.cli.main import main
from llmdpd_jax.data.environments import find_reference, make_environment
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.gymnasium_rollout import UNKNOWN, recover_environments, roll_out_in_gymnasium
from llmdpd_jax.evaluation.results import PROMPTS, load_results
from llmdpd_jax.evaluation.rollout import evaluate
from llmdpd_jax.evaluation.sweep import sweep
from llmdpd_jax.tasks.manifest import Manifest, Reference, TaskEntry, load_manifest, save_manifest

STEPS = 4
GOALS = {"train-0": [2.0, 0.0], "train-1": [0.0, 2.0], "test-0": [-2.0, 0.0]}


def reach(**kwargs):
    """What `gymnasium.make` needs to make the tests' environment."""
    return EnvSpec("Reach-v0", entry_point="reach:Reach", max_episode_steps=STEPS, kwargs={"goal": [0.0, 3.0]} | kwargs)


def log_episodes(name, environment, **metadata):
    """A Minari data set of four random episodes, which holds its environment."""
    env = minari.DataCollector(environment)
    env.action_space.seed(0)
    for seed in range(4):
        env.reset(seed=seed)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
    with warnings.catch_warnings(action="ignore"):  # no author and such
        env.create_dataset(name, **metadata)
    env.close()


def log_pendulum(name, gravity, **metadata):
    log_episodes(name, gym.make("Pendulum-v1", g=gravity, max_episode_steps=STEPS), **metadata)


@pytest.fixture
def manifest(world):
    """Tasks whose environments only their data sets know. Their sizes are those of the tiny world's policies."""
    path = world.folder / "reach" / "tasks.json"
    if not path.exists():
        tasks = []
        for name, goal in GOALS.items():
            dataset = f"reach/{name}-v0"
            log_episodes(dataset, gym.make(reach(goal=goal)), ref_min_score=-20, ref_max_score=-4)
            tasks.append(TaskEntry(name, name.split("-")[0], dataset, (f"go to {goal}", f"reach {goal}")))
        save_manifest(Manifest(tuple(tasks), "reach"), path)
    return load_manifest(path)


def test_returns_are_those_of_single_environments_step_by_step(manifest, tiny_run, load_lively_policy, monkeypatch):
    policy, calls = load_lively_policy(tiny_run), []
    act = policy.act

    def record(observation, *arguments, **options):
        calls.append((observation.copy(), np.asarray(act(observation, *arguments, **options))))
        return calls[-1][1]

    monkeypatch.setattr(policy, "act", record)
    results, rollouts = evaluate(policy, manifest, episodes=2, seed=3, workers=1, progress=False)
    assert rollouts is None and len(calls) == len(PROMPTS) * STEPS
    assert policy._act._cache_size() == 1, "acting compiles once"
    seeds = np.random.SeedSequence(3).generate_state(6).tolist()
    for m, prompt in enumerate(PROMPTS):
        for n, name in enumerate(["test-0", "train-0", "train-1"]):
            (row,) = [row for row in results.rows if (row.task, row.prompt) == (name, prompt)]
            assert row.split == name.split("-")[0] and row.wording == "seen"
            for e in range(2):
                env, place, total, ended, success = gym.make(reach(goal=GOALS[name])), 2 * n + e, 0.0, False, False
                observation, _ = env.reset(seed=seeds[place])
                for observations, actions in calls[m * STEPS : (m + 1) * STEPS]:
                    if not ended:
                        np.testing.assert_array_equal(observations[place], observation["observation"][0])
                        observation, reward, terminated, truncated, info = env.step(actions[place][None].astype(float))
                        total, ended, success = total + reward, terminated or truncated, success or info["success"]
                assert row.returns[e] == pytest.approx(total, rel=1e-6) and row.success[e] == success
            assert row.score == pytest.approx(100 * (np.mean(row.returns) + 20) / 16)
    spread = [np.ptp([calls[m * STEPS][1][i] for m in range(4)]) for i in range(6)]
    assert min(spread) > 1e-3, "prompts tell the policy something, from the same start"


def test_from_the_command_line(manifest, tiny_run, tmp_path, capsys):
    out = tmp_path / "scores"
    out.mkdir()
    (out / "rollouts.safetensors").write_text("of an earlier evaluation")
    command = ["evaluate", str(tiny_run), f"--manifest={manifest.path}", "--episodes=1", "--workers=1", f"--out={out}"]
    assert main(command) == 0
    assert "scores on unseen tasks" in capsys.readouterr().out
    results = load_results(out)
    assert results.family == "reach" and len(results.rows) == 4 * 3
    assert (out / "report.html").is_file() and not (out / "rollouts.safetensors").exists()


def test_train_tasks_can_be_left_out(manifest, tiny_run, tmp_path):
    command = ["evaluate", str(tiny_run), f"--manifest={manifest.path}", "--episodes=1", "--workers=1", "--test-only"]
    assert main([*command, f"--out={tmp_path}"]) == 0
    assert [(row.split, row.prompt) for row in load_results(tmp_path).rows] == [("test", prompt) for prompt in PROMPTS]


def steering(chunk=1):
    """A stand-in for a policy: it goes by its context, of which chunks hold one action and then its opposite."""

    def act(observations, context, key):
        assert observations.shape == (*context.full.shape[:1], 2)
        action = np.asarray(context.full)
        return action if chunk == 1 else np.stack([action, -action], axis=1)

    return SimpleNamespace(
        observation_size=2, action_size=2, chunk=chunk, act=act, steps_per_call=lambda execute: execute or chunk
    )


def test_episodes_end_where_they_end_and_tell_of_success():
    specs = [reach(), reach(ends=False, shown="is_success"), reach(shown=None)]
    contexts = Context(*[jnp.broadcast_to(jnp.array([[[[0.0, 1.0]]], [[[0.0, -1.0]]]]), (2, 3, 2, 2))] * 3)
    returns, success = roll_out_in_gymnasium(steering(), contexts, specs, seed=5, workers=1, progress=False)
    assert success[:, :2].tolist() == [[[1, 1]] * 2, [[0, 0]] * 2] and (success[:, 2] == UNKNOWN).all()
    seeds = np.random.SeedSequence(5).generate_state(6).tolist()
    for m, move in enumerate((1.0, -1.0)):
        for n, ends in enumerate((True, False, True)):
            for e in range(2):
                place = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds[2 * n + e]))).uniform(-1, 1, 2)
                total = 0.0
                for _ in range(4):
                    place = place + np.array([0, move])
                    distance = np.hypot(*(place - [0, 3]))
                    total -= distance
                    if ends and distance < 1:
                        break
                assert returns[m, n, e] == pytest.approx(total)


def test_chunks_are_carried_out_in_turn():
    contexts = Context(*[jnp.full((1, 1, 1, 2), 0.5)] * 3)
    start = gym.make(reach()).reset(seed=np.random.SeedSequence(0).generate_state(1).tolist()[0])[0]["observation"][0]
    for execute, moves in ((None, [0.5, -0.5, 0.5, -0.5]), (1, [0.5] * 4)):
        returns, _ = roll_out_in_gymnasium(
            steering(chunk=2), contexts, [reach(ends=False)], execute=execute, workers=1, progress=False
        )
        places = start + np.cumsum(moves)[:, None]
        assert returns[0, 0, 0] == pytest.approx(-np.linalg.norm(places - [0, 3], axis=1).sum(), rel=1e-6)


def test_processes_share_the_episodes():
    """Five episodes for two processes: one is rolled out twice, to fill the second group."""
    contexts = Context(*[jnp.linspace(-1, 1, 2 * 5 * 2).reshape(2, 1, 5, 2)] * 3)
    one, two = (
        roll_out_in_gymnasium(steering(), contexts, [reach()], 1, workers=workers, progress=False) for workers in (1, 2)
    )
    assert one[0].shape == (2, 1, 5) and len(np.unique(one[0])) == 10
    np.testing.assert_array_equal(one, two)
    with pytest.raises(UserError, match="0 workers; at least 1"):
        roll_out_in_gymnasium(steering(), contexts, [reach()], workers=0)


def task(dataset="absent-v0", **fields):
    return TaskEntry("a", "test", dataset, ("go",), **fields)


def test_the_manifest_may_name_the_environment(minari_root):
    log_pendulum("heavy-v0", 20.0)
    assert make_environment(task("heavy-v0"), "m").unwrapped.g == 20
    named = {"id": "Pendulum-v1", "g": 2.0, "max_episode_steps": 7}
    env = make_environment(task("heavy-v0", gym_env=named), "m")
    assert env.unwrapped.g == 2 and env.spec.max_episode_steps == 7
    manifest = Manifest((task(gym_env=named),), horizon=5)
    assert recover_environments(manifest, 3, 1)["a"].max_episode_steps == 5


def test_a_data_sets_evaluation_environment_comes_first(minari_root):
    log_pendulum("two-v0", 20.0, eval_env=gym.make("Pendulum-v1", g=1.0).spec)
    assert make_environment(task("two-v0"), "m").unwrapped.g == 1


def test_what_cannot_be_evaluated_in(write_dataset, monkeypatch):
    write_dataset("plain-v0", [])
    with pytest.raises(UserError, match=r"m: task 'a': there is nothing .* 'plain-v0' holds no environment"):
        make_environment(task("plain-v0"), "m")
    with pytest.raises(UserError, match=r"task 'a': there is nothing .* D4RL file /x/a\.hdf5 holds no environment"):
        make_environment(task("/x/a.hdf5"), "m")
    with pytest.raises(UserError, match=r"\"gym_env\" 'Pendulun-v1', cannot be made \(NameNotFound: .*Did you mean"):
        make_environment(task(gym_env={"id": "Pendulun-v1"}), "m")
    for gym_env, message in (
        ({"id": "CartPole-v1"}, r"task 'a': observation space .* is Box.*4,.*trained on 3 numbers"),
        ({"id": "MountainCar-v0"}, r"task 'a': observation space"),
        ({"id": "reach:Reach-v0", "goal": [0, 1]}, "cannot be made"),
    ):
        with pytest.raises(UserError, match=message):
            recover_environments(Manifest((task(gym_env=gym_env),)), 3, 1)
    with pytest.raises(UserError, match=r"task 'a': action space .* is Discrete\(2\); .*trained on 1 numbers"):
        recover_environments(Manifest((task(gym_env={"id": "CartPole-v1"}),)), 4, 1)
    monkeypatch.setitem(gym.registry, "Endless-v0", EnvSpec("Endless-v0", "reach:Reach", kwargs={"goal": [0, 1]}))
    with pytest.raises(UserError, match="'Endless-v0' has no time limit; give the manifest a \"horizon\""):
        recover_environments(Manifest((task(gym_env={"id": "Endless-v0"}),)), 2, 2)


def test_what_a_data_set_needs_is_named(minari_root):
    log_pendulum("robot-v0", 9.0)
    file = get_dataset_path("robot-v0") / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    spec = json.loads(metadata["env_spec"]) | {"entry_point": "absent_robots:Robot"}
    file.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec), "requirements": ["absent-robots>=1"]}))
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(UserError, match=r"ModuleNotFound.*absent_robots'\); it needs: pip install \"absent-robots>=1\""),
    ):
        make_environment(task("robot-v0"), "m")


def test_references(minari_root):
    log_pendulum("scored-v0", 9.0, ref_min_score=-5, ref_max_score=7)
    log_pendulum("plain-v0", 9.0)
    log_pendulum("wrong-v0", 9.0, ref_min_score=7, ref_max_score=7)
    assert find_reference(task("scored-v0"), "m") == Reference(-5, 7)
    assert find_reference(task("scored-v0", reference=Reference(0, 1)), "m") == Reference(0, 1)
    with pytest.raises(UserError, match=r"m: task 'a' has no \"reference\" and .*'plain-v0' no ref_min_score"):
        find_reference(task("plain-v0"), "m")
    with pytest.raises(UserError, match=r"has no \"reference\" and D4RL file /x/a\.hdf5 no ref_min_score"):
        find_reference(task("/x/a.hdf5"), "m")
    with pytest.raises(UserError, match=r"m: task 'a': the reference returns are 7.0 \(random\) and 7.0"):
        find_reference(task("wrong-v0"), "m")


def test_checks_come_before_rollouts(manifest, tiny_run):
    policy = load_policy(tiny_run)
    silent = tuple(TaskEntry(t.name, t.split, t.dataset) for t in manifest.tasks)
    with pytest.raises(UserError, match="task 'train-0' has no \"descriptions\", which evaluation needs"):
        evaluate(policy, Manifest(silent), progress=False)
    with pytest.raises(UserError, match='no task has "split": "test"'):
        evaluate(policy, Manifest(manifest.tasks[:2]), progress=False)
    with pytest.raises(UserError, match='names no "env"; a sweep needs a registered task family'):
        sweep(policy, manifest)
