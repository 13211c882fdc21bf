"""Seeds that learn side by side are runs of their own."""

import json
import shutil

import jax
import numpy as np
import pytest

from llmdpd_jax.cli.main import main
from llmdpd_jax.training import checkpoint, loop
from llmdpd_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow  # programs of their own are compiled

SMALL_STEPS = {"optimiser__learning_rate": 1e-5}  # rounding does not grow


@pytest.fixture
def both(world):
    """Two seeds in one call."""
    run = world.folder / "seeds"
    assert main(["train", *world.config(**SMALL_STEPS), "--seeds=2", f"--out={run}"]) == 0
    return run


def apart(one, other):
    leaves = (jax.tree.leaves(checkpoint.load(run, optimiser=True).state) for run in (one, other))
    return max(float(np.abs(a - b).max()) for a, b in zip(*leaves, strict=True))


def test_each_is_the_run_of_its_seed(world, both, tmp_path, capsys):
    alone = tmp_path / "alone"
    assert main(["train", *world.config(seed=1, **SMALL_STEPS), f"--out={alone}"]) == 0
    assert apart(both / "seed-1", alone) < 1e-5 < apart(both / "seed-0", alone)
    assert (both / "seed-1" / "config.json").read_bytes() == (alone / "config.json").read_bytes()
    metrics = [read_metrics(run / "metrics.csv") for run in (both / "seed-1", alone)]
    for name in metrics[0]:
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert json.loads(checkpoint.load(both / "seed-1").metadata["config"])["seed"] == 1
    # It acts, and goes on, by itself.
    assert main(["train", f"--resume={both / 'seed-1'}"]) == 0
    assert main(["evaluate", str(both / "seed-1"), "--episodes=1"]) == 0


def test_all_go_on_from_the_newest_step_that_every_one_has(world, both, tmp_path):
    parts = shutil.copytree(both, tmp_path / "parts")
    shutil.rmtree(parts / "seed-0" / "checkpoints" / "6")
    assert main(["train", f"--resume={parts}"]) == 0
    for seed in ("seed-0", "seed-1"):
        assert apart(parts / seed, both / seed) == 0
        np.testing.assert_array_equal(read_metrics(parts / seed / "metrics.csv")["step"], [2, 4, 6])


def test_streamed_seeds_learn_one_after_another(world, tmp_path):
    settings = world.config(data__streaming=True, data__stream_cache=str(tmp_path / "cache"), **SMALL_STEPS)
    run, alone = tmp_path / "run", tmp_path / "alone"
    assert main(["train", *settings, "--seeds=2", f"--out={run}"]) == 0
    assert main(["train", *settings, "--config.seed=1", f"--out={alone}"]) == 0
    assert apart(run / "seed-1", alone) == 0 < apart(run / "seed-0", alone)


def test_so_do_seeds_that_tune_the_llm(world, tmp_path):
    run = tmp_path / "run"
    assert main(["train", *world.config(text__lora_rank=2), "--seeds=2", f"--out={run}"]) == 0
    assert all((run / seed / "checkpoints" / "6").is_dir() for seed in ("seed-0", "seed-1"))
    assert apart(run / "seed-0", run / "seed-1") > 0


def test_so_do_seeds_that_do_not_fit_side_by_side(world, both, tmp_path, monkeypatch, capsys):
    run_updates = loop.run_updates

    def room_for_one(call, state, settings, named, runs, *others):
        if len(runs) > 1:
            raise MemoryError("too much for this machine")
        return run_updates(call, state, settings, named, runs, *others)

    monkeypatch.setattr(loop, "run_updates", room_for_one)
    run = tmp_path / "run"
    assert main(["train", *world.config(**SMALL_STEPS), "--seeds=2", f"--out={run}"]) == 0
    assert "2 seeds do not fit side by side" in " ".join(capsys.readouterr().err.split())
    for seed in ("seed-0", "seed-1"):
        assert apart(run / seed, both / seed) < 1e-5
        np.testing.assert_array_equal(read_metrics(run / seed / "metrics.csv")["step"], [2, 4, 6])


def test_a_seed_whose_turn_had_not_come_is_not_waited_for(world, both, tmp_path):
    parts = shutil.copytree(both, tmp_path / "parts")
    shutil.rmtree(parts / "seed-1" / "checkpoints")
    (parts / "seed-1" / "metrics.csv").unlink()
    before = (parts / "seed-0" / "metrics.csv").read_bytes()
    assert main(["train", f"--resume={parts}"]) == 0
    assert apart(parts / "seed-1", both / "seed-1") < 1e-5
    assert (parts / "seed-0" / "metrics.csv").read_bytes() == before


def test_at_least_one_seed(world, tmp_path, capsys):
    assert main(["train", *world.config(), "--seeds=0", f"--out={tmp_path / 'run'}"]) == 2
    assert "train at least one" in capsys.readouterr().err
