"""Seeds that learn side by side are runs of their own."""

import json
import shutil

import jax
import numpy as np
import pytest

from llmdpd_jax.cli.main import main
from llmdpd_jax.training import checkpoint
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


def test_seeds_that_cannot_learn_side_by_side(world, tmp_path, capsys):
    out = f"--out={tmp_path / 'run'}"
    assert main(["train", *world.config(), "--seeds=0", out]) == 2
    assert "train at least one" in capsys.readouterr().err
    assert main(["train", *world.config(text__lora_rank=2), "--seeds=2", out]) == 2
    assert "tune the LLM" in capsys.readouterr().err
    assert main(["train", *world.config(data__streaming=True), "--seeds=2", out]) == 2
    assert "data.streaming" in capsys.readouterr().err
