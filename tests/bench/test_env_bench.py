"""`llmdpd bench env` and `eval`: what they compare, and what they cannot."""

import numpy as np
import pytest

from llmdpd_jax.bench import env
from llmdpd_jax.bench.machine import choose_cpus
from llmdpd_jax.bench.registry import BENCHMARKS
from llmdpd_jax.cli.main import main
from llmdpd_jax.errors import UserError


@pytest.mark.slow
def test_rows_name_what_acts_and_what_it_is_compared_with(monkeypatch):
    monkeypatch.setattr(env, "STEPS", 3)
    report = env.run_eval("point_robot", choose_cpus(1), repeats=1, environments=4)
    assert [(row.name, row.reference) for row in report.rows] == [
        ("eval/point_robot, batch 4, chain", "random actions"),
        ("eval/point_robot, batch 4, student", "random actions"),
    ]
    assert all(row.ratio > 0 and row.unit == "steps/s" and row.threads == 1 for row in report.rows)


@pytest.mark.parametrize("acting", [env.RANDOM, env.CHAIN, env.STUDENT])
def test_a_side_steps_all_its_environments(acting):
    side = env.Simulation("point_robot", acting, environments=5, steps=4)
    # Each step of the point robot costs its distance to the goal: at most 20 environment steps of a few metres.
    assert -20 * 3 < side.result(None) < 0
    np.testing.assert_array_equal(side.result(None), side.result(None))


def test_only_robots_have_something_to_be_compared_with(capsys):
    with pytest.raises(UserError, match="'point_robot' is no robot of Brax"):
        env.run_env("point_robot", choose_cpus(1), repeats=1)
    assert main(["bench", "eval", "--family=cheetah"]) == 2
    assert "did you mean 'cheetah_vel'" in capsys.readouterr().err
    assert {"env", "eval"} <= set(BENCHMARKS)


@pytest.mark.slow
def test_tasks_of_a_robot_beside_brax(monkeypatch):
    monkeypatch.setattr(env, "STEPS", 2)
    (row,) = env.run_env("cheetah_vel", choose_cpus(1), repeats=1, environments=4).rows
    assert (row.name, row.reference) == ("env/cheetah_vel, batch 4, tasks", "Brax's own") and row.ratio > 0
