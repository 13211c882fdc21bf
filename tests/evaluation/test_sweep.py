"""A sweep is many evaluations in one compiled call."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from llmdpd_jax import Policy, load_policy
from llmdpd_jax.cli.main import main
from llmdpd_jax.diffusion.guidance import Guidance
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation import sweep as module
from llmdpd_jax.evaluation.results import Results, group_of, load_results
from llmdpd_jax.evaluation.rollout import evaluate
from llmdpd_jax.evaluation.sweep import sweep
from llmdpd_jax.tasks.manifest import load_manifest, save_manifest

pytestmark = pytest.mark.slow  # programs of their own are compiled


@pytest.fixture
def run(world):
    """A policy of chunks of two actions that has learned to answer different things, with a student."""
    out = world.folder / "swept"
    changes = {
        "train__steps": 100,
        "train__log_every": 100,
        "train__checkpoint_every": 50,
        "agent__policy_improvement": "student",
        "agent__chunk": 2,
        "evaluation__temperature": 0.5,
        "evaluation__best_of": 2,
        "evaluation__critic_guidance": 0.5,
    }
    assert main(["train", *world.config(**changes), f"--out={out}"]) == 0
    return out


def test_each_combination_is_what_evaluate_gives(world, run):
    policy, manifest = load_policy(run), load_manifest(world.manifest)
    ways = {"samplers": ("ddim", "heun"), "steps": (1, 3), "text_guidance": (1.0, 1.5), "trajectory_guidance": (0.5,)}
    swept = sweep(policy, manifest, **ways, episodes=2, progress=False)
    assert len({group_of(row) for row in swept.rows if row.split == "test"}) == 6 * (4 * 2 + 1)
    for name, steps, text in (("ddim", 3, 1.5), ("heun", 3, 1.0), ("ddim", 1, 1.0)):
        alone, _ = evaluate(
            policy, manifest, episodes=2, sampler=name, steps=steps, guidance=Guidance(text, 0.5, 0.5), progress=False
        )
        how = f"{name}-{steps}, best of 2, temperature 0.5, 2 of 2 actions"
        assert alone.rows[0].sampler == how
        found = {
            (r.task, r.prompt, r.wording): r for r in swept.rows if r.sampler == how and r.guidance["text"] == text
        }
        assert len(found) == len(alone.rows)
        for row in alone.rows:
            same = found[row.task, row.prompt, row.wording]
            assert same.guidance == row.guidance and same.split == row.split
            np.testing.assert_allclose(same.returns, row.returns, rtol=1e-3, atol=1e-3)


def test_from_the_command_line(world, run, tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(["sweep", str(run), "--steps", "1", "3", "--samplers", "ddim", "--episodes=1", f"--out={out}"]) == 0
    assert "sweep.png" in capsys.readouterr().out
    rows = json.loads((out / "results.json").read_text())["rows"]
    ways = "ddim-1", "ddim-3", "student"
    assert {row["sampler"] for row in rows} == {f"{way}, best of 2, temperature 0.5, 2 of 2 actions" for way in ways}
    assert {row["guidance"]["critic"] for row in rows} == {0.5}
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_swept_into_one_file_and_not_again(world, run, tmp_path, monkeypatch):
    """Checkpoints of one seed are told apart; what was found before the sweep was stopped is kept."""
    steps = sorted((run / "checkpoints").iterdir(), key=lambda folder: int(folder.name))[-2:]
    how = {"samplers": ("ddim",), "steps": (1,), "episodes": 1, "progress": False}
    calls, sweep_one = [], module.sweep

    def once(policy, *arguments, **options):
        calls.append(policy.checkpoint.path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweep_one(policy, *arguments, **options)

    monkeypatch.setattr(module, "sweep", once)
    with pytest.raises(KeyboardInterrupt):
        module.sweep_runs(steps, tmp_path, **how)
    results = module.sweep_runs(steps, tmp_path, **how)
    assert calls == [steps[0], steps[1], steps[1]]
    assert {row.variant for row in results.rows} == set(map(str, steps))
    assert load_results(tmp_path).rows == results.rows
    with pytest.raises(UserError, match="is given twice"):
        module.sweep_runs([steps[0], steps[0]], tmp_path, **how)
    alone = module.sweep_runs(steps[1:], tmp_path, **how)
    assert len(calls) == 3 and {row.variant for row in alone.rows} == {""}  # nothing to tell it from


def test_a_part_is_of_what_checkpoint_and_manifest_hold(world, run, tmp_path, monkeypatch):
    """Not of their paths: a run may be trained again, and a manifest written again, at the same one."""
    how = {"manifest": tmp_path / "tasks.json", "samplers": ("ddim",), "steps": (1,), "episodes": 1}
    calls, found = [], Results("point_robot", "", "", "", "", 0.0, ())
    monkeypatch.setattr(module, "sweep", lambda *_, **options: calls.append(options) or found)
    manifest = save_manifest(load_manifest(world.manifest), how["manifest"])
    policy = load_policy(run)

    def swept() -> int:
        monkeypatch.setattr(module, "load_policy", lambda path: policy)
        module.sweep_runs([run], tmp_path / "out", **how)
        return len(calls)

    assert (swept(), swept()) == (1, 1)
    save_manifest(replace(manifest, tasks=manifest.tasks[::-1]), how["manifest"])
    assert (swept(), swept()) == (2, 2)
    checkpoint = policy.checkpoint
    state = checkpoint.state.replace(ema=jax.tree.map(lambda x: 2 * x, checkpoint.state.ema))
    policy = Policy(checkpoint._replace(state=state))
    assert (swept(), swept()) == (3, 3)


def test_what_does_not_suit_the_policy(world, run):
    policy, manifest = load_policy(run), load_manifest(world.manifest)
    with pytest.raises(UserError, match="steps should be distinct values"):
        sweep(policy, manifest, steps=(3, 3))
    with pytest.raises(UserError, match="sampler: 'dimm' is unknown"):
        sweep(policy, manifest, samplers=("dimm",))
    with pytest.raises(UserError, match="9 is out of range"):
        sweep(policy, manifest, steps=(9,))
    with pytest.raises(UserError, match="'midpoint' visits times off a grid"):
        sweep(policy, manifest, samplers=("midpoint",))
    with pytest.raises(UserError, match="trajectory_guidance: nan is out of range"):
        sweep(policy, manifest, trajectory_guidance=(1.0, float("nan")))
