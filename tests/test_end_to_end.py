"""From data to acting through the command line: evaluate, report, a checkpoint alone, the example of own data."""

import json
import shutil
import subprocess
from dataclasses import replace

import jax
import numpy as np
import pytest

from llmdpd_jax import load_policy
from llmdpd_jax.cli.main import main
from llmdpd_jax.evaluation import rollout
from llmdpd_jax.evaluation.results import PROMPTS, load_results
from llmdpd_jax.tasks.manifest import load_manifest, save_manifest

TOLD_IN_WORDS = ("text", "text+trajectory")


def test_evaluate_and_report(world, tiny_run, tmp_path, capsys):
    runs = [shutil.copytree(tiny_run, tmp_path / "seed-0"), tmp_path / "seed-1"]
    assert main(["train", *world.config(seed=1), f"--out={runs[1]}"]) == 0
    for run in runs:
        assert main(["evaluate", str(run)]) == 0
        assert "scores on unseen tasks" in capsys.readouterr().out
        assert (run / "report.html").stat().st_size > 10_000

    manifest = load_manifest(world.manifest)
    results = load_results(runs[0])
    assert results.family == "point_robot" and results.checkpoint == str(runs[0] / "checkpoints" / "6")
    conditions = {(row.prompt, row.wording) for row in results.rows}
    assert conditions == {(p, "seen") for p in PROMPTS} | {("text", "held_out"), ("text+trajectory", "held_out")}
    assert len(results.rows) == len(conditions) * len(manifest.tasks) == 6 * 8
    references = {task.name: task.reference for task in manifest.tasks}
    for row in results.rows:
        reference = references[row.task]
        score = 100 * (np.mean(row.returns) - reference.random) / (reference.expert - reference.random)
        assert row.score == pytest.approx(score, rel=1e-6) and len(row.returns) == row.episodes == 2
        assert min(row.returns) > -60 and max(row.returns) < 0, "20 steps of minus a distance"

    assert main(["report", *map(str, runs), f"--out={tmp_path / 'both'}"]) == 0
    merged = load_results(tmp_path / "both")
    assert len(merged.rows) == 2 * len(results.rows) and {row.seed for row in merged.rows} == {0, 1}
    assert "2 seeds" in capsys.readouterr().out and (tmp_path / "both" / "report.html").is_file()


@pytest.mark.parametrize("without", ["one", "all test"])
def test_tasks_without_held_out_wordings_have_no_such_rows(world, tiny_run, tmp_path, without):
    """Of the others nothing changes."""
    manifest = load_manifest(world.manifest)
    tasks = {task.name: task for task in manifest.tasks}
    silent = [name for name, task in tasks.items() if task.split == "test"][: 1 if without == "one" else None]
    changed = [replace(task, held_out_descriptions=()) if name in silent else task for name, task in tasks.items()]
    path = save_manifest(replace(manifest, tasks=tuple(changed)), tmp_path / "tasks.json").path
    assert main(["evaluate", str(tiny_run), f"--manifest={path}", f"--out={tmp_path / 'some'}"]) == 0
    assert main(["evaluate", str(tiny_run), f"--out={tmp_path / 'all'}"]) == 0
    some, rows = (
        {(row.task, row.prompt, row.wording): row.returns for row in load_results(tmp_path / name).rows}
        for name in ("some", "all")
    )
    assert set(rows) - set(some) == {(name, prompt, "held_out") for name in silent for prompt in TOLD_IN_WORDS}
    for where, returns in some.items():
        np.testing.assert_allclose(returns, rows[where], atol=1e-3)


def test_results_name_the_commit_of_this_code_alone(tmp_path, monkeypatch):
    """Not that of a checkout of something else, below which it is installed."""

    def git(*arguments):
        author = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "rollout.py").touch()
    (tmp_path / "own.py").touch()
    git("init")
    git("add", "own.py")
    git("commit", "-m", "their own")
    monkeypatch.setattr(rollout, "__file__", str(tmp_path / "rollout.py"))
    assert rollout.git_commit() == ""
    git("add", "rollout.py")
    git("commit", "-m", "a checkout of this code")
    assert rollout.git_commit() == git("rev-parse", "--short=12", "HEAD")


def test_evaluation_repeats_itself(world, tiny_run, tmp_path):
    returns = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main(["evaluate", str(tiny_run), f"--seed={seed}", f"--out={tmp_path / name}"]) == 0
        returns.append([row.returns for row in load_results(tmp_path / name).rows])
    assert returns[0] == returns[1] and returns[0] != returns[2]


def test_a_checkpoint_acts_alone(made_world, tiny_run, tmp_path, monkeypatch):
    """Only the checkpoint and the LLM are there: no manifest, no data, no cache, and the folder has moved."""
    run = tmp_path / "elsewhere"
    shutil.copytree(tiny_run / "checkpoints", run / "checkpoints")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "no-data"))
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "cache"))
    manifest = made_world.manifest.rename(tmp_path / "aside.json")
    try:
        policy = load_policy(run)
        episode = {"observations": np.zeros((4, 2)), "actions": np.zeros((3, 2)), "rewards": np.zeros(3)}
        action = policy.act(np.zeros(2), policy.prompt("go to (0.1, 0.2)", episode), jax.random.key(0))
    finally:
        manifest.rename(made_world.manifest)
    assert action.shape == (2,) and np.isfinite(action).all()


def test_bring_your_own_data(world, load_lively_policy, load_example, tmp_path, monkeypatch, capsys):
    """The README's example, small: spaces of its own, no registered environment, data sets of plain Minari."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    example = load_example("bring_your_own_data")
    monkeypatch.setattr(example, "EPISODES", 5)
    run = tmp_path / "harbour"
    changes = [argument for argument in world.config() if not argument.startswith(("--config=", "--config.data.m"))]
    assert example.main([f"--out={run}", "--tasks=4", *changes]) == 0

    out = capsys.readouterr().out
    returns = {line.split(" mean return ")[0].strip(): float(line.split()[-1]) for line in out.splitlines()[-4:]}
    assert set(returns) == {"logged", "text", "trajectory", "text and trajectory"}
    assert all(-15 * 12 < value < 0 for value in returns.values()), "15 steps of at most 117 m / 10"

    policy = load_lively_policy(run)
    np.testing.assert_array_equal(policy.checkpoint.statistics.action_high, [8, 8])
    np.testing.assert_allclose(policy.checkpoint.statistics.observation_mean, [50, 30], atol=25)
    actions = policy.act(np.full((64, 2), 40.0), policy.prompt("Moor at 10 m east, 20 m north"), jax.random.key(0))
    assert np.abs(actions).max() <= 8 and np.abs(actions).max() > 1, "in the user's units"

    assert json.loads((run / "tasks.json").read_text())["tasks"][3]["split"] == "test"
    assert main(["evaluate", str(run)]) == 2
    assert 'names no "env"' in capsys.readouterr().err
