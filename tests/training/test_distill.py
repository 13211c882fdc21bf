"""A student of a finished policy: it alone learns, and it acts like its teacher."""

from functools import partial

import jax
import numpy as np
import pytest

from llmdpd_jax import load_policy
from llmdpd_jax.cli.main import main
from llmdpd_jax.training import checkpoint
from llmdpd_jax.training.preparation import taught

pytestmark = pytest.mark.slow  # programs of their own are compiled


@pytest.fixture(scope="module")
def folder(made_world):
    return made_world.folder / "distilled"


@pytest.fixture
def runs(world, folder):
    """A teacher that has learned to answer different things, and a student of it."""
    teacher, student = folder / "teacher", folder / "student"
    assert (
        main(
            [
                "train",
                *world.config(train__steps=200, train__log_every=100, train__checkpoint_every=100),
                f"--out={teacher}",
            ]
        )
        == 0
    )
    assert main(["distill", str(teacher), f"--out={student}", "--updates=200", "--eta=0"]) == 0
    return teacher, student


def test_only_the_student_learns(runs):
    teacher, student = (checkpoint.load(run) for run in runs)
    for name, kept in teacher.state.ema.items():
        # The slow copies follow parameters that are what they are: up to rounding.
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), kept, student.state.ema[name])
        jax.tree.map(np.testing.assert_array_equal, kept, student.state.params[name])
    jax.tree.map(np.testing.assert_array_equal, teacher.state.params["critic"], student.state.params["critic"])
    jax.tree.map(np.testing.assert_array_equal, teacher.statistics, student.statistics)
    jax.tree.map(np.testing.assert_array_equal, teacher.text_statistics, student.text_statistics)
    assert int(student.state.step) == 200
    moved = student.state.params["student"]["out"]["kernel"] - teacher.state.ema["denoiser"]["out"]["kernel"]
    assert np.abs(moved).max() > 1e-3


@pytest.mark.parametrize("parameterisation", ["x0", "noise"])
def test_it_starts_as_the_denoiser_where_that_speaks_of_clean_actions(runs, parameterisation):
    teacher, student = (checkpoint.load(run).state for run in runs)
    state = taught(student, teacher, parameterisation)
    expected = teacher.ema["denoiser"] if parameterisation == "x0" else student.params["student"]
    jax.tree.map(np.testing.assert_array_equal, expected, state.params["student"])
    assert not np.array_equal(expected["out"]["kernel"], student.ema["student"]["out"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, teacher.ema["denoiser"], state.params["denoiser"])
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema))]
    assert len(set(buffers)) == len(buffers)  # the state is donated


def test_nothing_is_computed_for_networks_that_stay_as_they_are(runs):
    """What nobody asks for XLA leaves out: no metric but the student's, and no gradient but its own."""
    lines = [line.split(",") for line in (runs[1] / "metrics.csv").read_text().splitlines()]
    assert lines[0] == ["step", "grad_norm", "loss/policy", "loss/student", "value/policy"]
    first, last = (float(line[lines[0].index("loss/student")]) for line in (lines[1], lines[-1]))
    assert last < 0.7 * first


def test_it_acts_in_one_call_as_its_teacher_does_in_a_chain(runs):
    """From the same noise: nearer to the teacher than the answer that a fresh student has to everything, 0."""
    teacher, student = (load_policy(run) for run in runs)
    assert student.config.evaluation.sampler == "student"
    observation = np.random.default_rng(0).uniform(-1, 1, (50, teacher.observation_size)).astype(np.float32)
    context = student.prompt("Go to (0.3, 0.4)")
    expected = teacher.act(observation, teacher.prompt("Go to (0.3, 0.4)"), jax.random.key(1), sampler="ddim")
    found = student.act(observation, context, jax.random.key(1))
    same = student.act(observation, context, jax.random.key(1), sampler="ddim", steps=teacher.config.evaluation.steps)
    np.testing.assert_allclose(same, expected, atol=1e-5)
    assert np.abs(found - expected).mean() < 0.7 * np.abs(expected).mean()


def test_an_interrupted_student_goes_on(runs, folder, capsys):
    """The run folder holds all that is needed but the teacher's units."""
    student = runs[1]
    assert main(["train", f"--resume={student}"]) == 0
    assert int(checkpoint.load(student).state.step) == 200


def test_a_policy_trained_with_a_student_acts_by_it(world, folder):
    run = folder / "with_student"
    assert main(["train", *world.config(agent__policy_improvement="student"), f"--out={run}"]) == 0
    policy = load_policy(run)
    assert policy.config.evaluation.sampler == "student"
    observation, context = np.zeros((3, policy.observation_size), np.float32), policy.prompt("Go to (0.3, 0.4)")
    key = jax.random.key(1)
    by_student = policy.act(observation, context, key, sampler="student")
    np.testing.assert_array_equal(policy.act(observation, context, key), by_student)


def test_teachers_that_do_not_fit(world, runs, capsys, tmp_path):
    teacher, _ = runs

    def complaint(*arguments):
        assert main([*arguments, f"--out={tmp_path / 'out'}"]) != 0
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no such run" in complaint("distill", str(tmp_path / "none"))
    given = world.config(agent__policy_improvement="student", train__distill_from=str(teacher), model__width=24)
    assert "has other networks; both configs need the same model" in complaint("train", *given)
    given = world.config(train__distill_from=str(teacher))
    assert "train.distill_from: needs agent.policy_improvement='student'" in complaint("train", *given)
