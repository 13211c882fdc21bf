"""Training an expert with Brax's PPO: on the point robot, which needs no physics."""

import dataclasses
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.wrappers.training import wrap
from brax.training.acme import running_statistics

from llmdpd_jax.cli.main import main
from llmdpd_jax.data.collect import mean_returns
from llmdpd_jax.tasks.experts import Expert, load_expert, make_behaviour
from llmdpd_jax.tasks.family import Frame, get_family
from llmdpd_jax.tasks.point_robot import STEP
from llmdpd_jax.training import expert as training


def goal_seeker(share):
    """Brax's parameters of a policy that moves towards the goal it is told, by tanh of a share of what is missing."""
    kernel = np.zeros((4, 4))
    kernel[0, 0] = kernel[1, 1] = -share
    kernel[2, 0] = kernel[3, 1] = share
    # Two hidden layers that pass on four numbers: swish(x) is x where x is large.
    first, second = np.zeros((4, 128)), np.eye(128)
    first[:, :4] = np.eye(4)
    out = np.zeros((128, 4))
    out[:4] = kernel
    shift = np.zeros(128)
    shift[:4] = 50.0
    layers = {
        "hidden_0": {"kernel": first, "bias": shift},
        "hidden_1": {"kernel": second, "bias": np.zeros(128)},
        "hidden_2": {"kernel": out, "bias": np.concatenate([-50.0 * kernel.sum(0)[:2], [-20.0, -20.0]])},
    }
    statistics = running_statistics.init_state(jnp.zeros(4))
    return statistics, {"params": layers}


def test_snapshots_go_from_the_first_look_to_the_best_in_even_steps_of_return(monkeypatch):
    monkeypatch.setattr(training, "SNAPSHOTS", 3)
    shares = [0.0, 0.01, 0.02, 0.1, 0.3, 1.0, 4.0, 2.0]
    learner = training.stack([goal_seeker(share) for share in shares])
    family = get_family("point_robot")
    goals = np.stack([family.parameter_array(task.parameters) for task in family.tasks()])
    expert, curve = training.choose_snapshots(family, learner, goals)
    assert len(curve) == 8 and int(np.argmax(curve)) == 6 and np.all(np.diff(curve[:7]) > 0)
    halfway = int(np.abs(np.array(curve[:7]) - (curve[0] + curve[6]) / 2).argmin())
    np.testing.assert_array_equal(expert.mean, learner.mean[[0, halfway, 6]])
    np.testing.assert_array_equal(expert.kernels[-1], learner.kernels[-1][[0, halfway, 6]])
    assert expert.medium == 1
    # What is played later is what was measured.
    played = dataclasses.replace(family, behaviour=partial(make_behaviour, expert))
    assert float(mean_returns(played, "expert", goals, 3).mean()) == pytest.approx(curve[6], abs=1e-3)


def test_no_snapshot_is_later_than_the_best(monkeypatch):
    """Where returns fall back after the best look, those looks are not used, however near to halfway they are."""
    monkeypatch.setattr(training, "SNAPSHOTS", 3)
    learner = training.stack([goal_seeker(share) for share in (0.0, 0.01, 4.0, 0.1)])
    family = get_family("point_robot")
    goals = np.stack([family.parameter_array(task.parameters) for task in family.tasks()])
    expert, curve = training.choose_snapshots(family, learner, goals)
    assert int(np.argmax(curve)) == 2 and abs(curve[3] - (curve[0] + curve[2]) / 2) < abs(
        curve[1] - (curve[0] + curve[2]) / 2
    )
    np.testing.assert_array_equal(expert.kernels[-1][1], learner.kernels[-1][1])


def test_a_learner_sees_and_acts_by_the_familys_frame():
    """It is told what is missing to the goal, and its actions depend on where it is; also after Brax starts anew."""
    family = get_family("point_robot")
    frame = Frame(
        lambda seen, told: jnp.append(told - seen, 7.0), lambda seen, told, action: told * seen + action[::-1]
    )
    goal = jnp.array([0.5, -0.25])
    env = wrap(training.Told(family.make_env(), frame, goal), episode_length=2)
    assert training.Told(family.make_env(), frame).observation_size == 3
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), 1))  # of the kind that Brax takes
    np.testing.assert_array_equal(state.obs, [[0.5, -0.25, 7.0]])
    place = np.zeros(2)
    for steps in (1, 2, 3):
        state = jax.jit(env.step)(state, jnp.array([[0.2, 0.6]]))
        place = np.zeros(2) if steps == 2 else place + STEP * (goal * place + np.array([0.6, 0.2]))
        np.testing.assert_allclose(state.obs[0, :2], goal - place, atol=1e-6)


@pytest.mark.slow
@pytest.mark.optimised
def test_an_expert_learns_and_tells_how(tmp_path, monkeypatch, capsys):
    quick = {"batch_size": 16, "num_minibatches": 32, "learning_rate": 1e-3}
    monkeypatch.setattr(training, "PPO_SETTINGS", training.PPO_SETTINGS | quick)
    monkeypatch.setattr(training, "LOOKS", 8)
    out = tmp_path / "experts" / "point.safetensors"
    command = ["expert", "--family=point_robot", "--steps=400000", f"--out={out}"]
    assert main(command) == 0
    assert "random: mean return" in capsys.readouterr().out
    expert, record = load_expert(out)
    assert isinstance(expert, Expert) and expert.snapshots == training.SNAPSHOTS
    assert record["steps"] >= 400_000 and len(record["curve"]) == 8 and record["device"] == "cpu"
    family = get_family("point_robot")
    goals = np.stack([family.parameter_array(task.parameters) for task in family.tasks()])
    random, best = (float(mean_returns(family, quality, goals, 20).mean()) for quality in ("random", "expert"))
    learned = np.mean(list(record["returns"]["expert"].values()))
    assert 100 * (learned - random) / (best - random) > 80


def test_an_interrupted_expert_is_written_as_far_as_it_got(tmp_path, monkeypatch):
    """Brax's learner is replaced by one that shows its looks; the signal comes between the second and the third."""
    shares, shown = [0.0, 0.3, 1.0, 4.0, 5.0], []

    def learn(policy_params_fn, **_):
        for i, share in enumerate(shares):
            if i == 2:
                signal.raise_signal(signal.SIGTERM)
            shown.append(share)
            policy_params_fn(10 * i, None, goal_seeker(share))

    monkeypatch.setattr(training.ppo, "train", learn)
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "point.safetensors"
    record = training.train_expert("point_robot", 40, out)
    assert shown == shares[:3] and record["steps"] == 20 and len(record["curve"]) == 3
    assert load_expert(out)[0].snapshots == training.SNAPSHOTS
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_expert_is_measured_loses_nothing(tmp_path, monkeypatch):
    def learn(policy_params_fn, **_):
        for i, share in enumerate((0.0, 0.3, 1.0)):
            policy_params_fn(10 * i, None, goal_seeker(share))

    def measured(*given):
        signal.raise_signal(signal.SIGTERM)
        return choose_snapshots(*given)

    choose_snapshots = training.choose_snapshots
    monkeypatch.setattr(training.ppo, "train", learn)
    monkeypatch.setattr(training, "choose_snapshots", measured)
    record = training.train_expert("point_robot", 20, tmp_path / "point.safetensors")
    assert record["steps"] == 20 and load_expert(tmp_path / "point.safetensors")[0].snapshots == training.SNAPSHOTS


def test_bad_input_is_named_before_any_training(tmp_path, capsys):
    assert main(["expert", "--family=point_robot", "--task=train-99"]) == 2
    assert "'point_robot' has no task 'train-99'" in capsys.readouterr().err
    assert main(["expert", "--family=point_robot", "--steps=0"]) == 2
    assert "steps must be at least 1, found 0" in capsys.readouterr().err
    assert main(["expert", "--family=point_robot", f"--out={tmp_path}"]) == 2
    assert f"{tmp_path}: is a folder" in capsys.readouterr().err
    assert main(["expert", "--family=point_robots"]) == 2
    assert "did you mean 'point_robot'" in capsys.readouterr().err
