"""Training runs: one compilation, repeatable, resumable, and closed to test tasks."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from minari.storage import get_dataset_path

from llmdpd_jax.cli.main import main
from llmdpd_jax.tasks.manifest import load_manifest
from llmdpd_jax.training import checkpoint, loop, preparation
from llmdpd_jax.training.metrics import MetricsWriter, read_metrics


@contextmanager
def hidden(*paths):
    """Files and folders that are gone for a while."""
    aside = [(path, path.with_name(f"{path.name}.hidden")) for path in paths]
    for path, elsewhere in aside:
        path.rename(elsewhere)
    try:
        yield
    finally:
        for path, elsewhere in aside:
            elsewhere.rename(path)


def train(world, run, **changes) -> int:
    return main(["train", *world.config(**changes), f"--out={run}"])


def assert_same_run(a, b, step):
    """Two runs ended with the same metrics, parameters, slow copies and optimiser state, bit for bit."""
    assert (a / "metrics.csv").read_bytes() == (b / "metrics.csv").read_bytes()
    states = [checkpoint.load(run / "checkpoints" / str(step), optimiser=True).state for run in (a, b)]
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    assert len(leaves[0]) == len(leaves[1]) > 50
    for (path, x), (_, y) in zip(*leaves, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def test_one_compilation_per_run(world, tmp_path, monkeypatch):
    """Calls of 4, 1 and 1 updates, one of them up to a checkpoint and one the rest, all run the same program."""
    made, counts = [], []

    def make_train_call(*arguments):
        call = make(*arguments)
        made.append(call)

        def counted(*inputs):
            counts.append(int(inputs[-1]))
            return call(*inputs)

        return counted

    make = loop.make_train_call
    monkeypatch.setattr(loop, "make_train_call", make_train_call)
    assert train(world, tmp_path / "run", train__log_every=4, train__checkpoint_every=5) == 0
    assert counts == [4, 1, 1]
    assert len(made) == 1 and made[0]._cache_size() == 1


def test_identical_seeds_give_identical_runs(world, tiny_run, tmp_path):
    assert train(world, tmp_path / "same") == 0
    assert_same_run(tiny_run, tmp_path / "same", step=6)
    assert train(world, tmp_path / "other", seed=1) == 0
    assert (tiny_run / "metrics.csv").read_bytes() != (tmp_path / "other" / "metrics.csv").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_equals_uninterrupted(world, tmp_path, monkeypatch, capsys, number):
    """The signal comes between checkpoints, while a call runs."""
    settings = {"train__checkpoint_every": 100}
    assert train(world, tmp_path / "whole", **settings) == 0

    write = MetricsWriter.write

    def write_and_signal(self, step, metrics):
        write(self, step, metrics)
        if step == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(MetricsWriter, "write", write_and_signal)
    run = tmp_path / "parts"
    assert train(world, run, **settings) == 130
    assert f"stopped at update 4; go on with: llmdpd train --resume={run}" in capsys.readouterr().err
    assert checkpoint.find(run)[1] == 4
    monkeypatch.setattr(MetricsWriter, "write", write)

    assert main(["train", f"--resume={run}"]) == 0
    assert_same_run(tmp_path / "whole", run, step=6)
    np.testing.assert_array_equal(read_metrics(run / "metrics.csv")["step"], [2, 4, 6])


def test_the_newest_checkpoints_are_kept_and_those_of_every_so_many_updates(world, tmp_path):
    assert train(world, tmp_path / "run", train__keep_checkpoints=1, train__keep_every=4) == 0
    assert checkpoint.finished(tmp_path / "run") == [4, 6]


def test_rows_after_the_last_checkpoint_are_written_again(world, tiny_run, tmp_path):
    """A run that was killed outright goes on from its last checkpoint, as if nothing had happened."""
    killed = shutil.copytree(tiny_run, tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "6")
    rows = (killed / "metrics.csv").read_text().splitlines(keepends=True)
    (killed / "metrics.csv").write_text("".join(rows[:3]) + rows[3][:7])  # half a line
    assert train(world, killed) == 0
    assert_same_run(tiny_run, killed, step=6)


@pytest.mark.slow  # a run of that many updates is compiled anew
def test_a_process_told_to_stop_leaves_a_checkpoint(world, tmp_path, subprocess_environment):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "llmdpd_jax", "train", *world.config(train__steps=10**7), f"--out={run}"]
    process = subprocess.Popen(
        command, env=subprocess_environment | world.environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        metrics = run / "metrics.csv"
        while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    step = checkpoint.find(run)[1]
    assert f"stopped at update {step}; go on with: llmdpd train --resume={run}" in err and "Traceback" not in err
    assert read_metrics(metrics)["step"][-1] == step == checkpoint.load(run).state.step


def test_a_finished_run_is_left_as_it_is(world, tiny_run, monkeypatch):
    before = {p: p.read_bytes() for p in tiny_run.rglob("*") if p.is_file() and "tensorboard" not in p.parts}
    assert train(world, tiny_run) == 0
    assert all(path.read_bytes() == content for path, content in before.items())


def test_test_tasks_are_never_opened(world, tmp_path, monkeypatch):
    """Training works without their data sets, reads none of their descriptions, and gives the same run."""
    manifest = load_manifest(world.manifest)
    test = [task for task in manifest.tasks if task.split == "test"]
    read = []
    read_descriptions = preparation.read_descriptions
    monkeypatch.setattr(
        preparation,
        "read_descriptions",
        lambda encoder, tasks, *units: read.extend(tasks) or read_descriptions(encoder, tasks, *units),
    )
    assert train(world, tmp_path / "with") == 0
    with hidden(*(get_dataset_path(task.dataset) for task in test)):
        assert train(world, tmp_path / "without") == 0
    assert_same_run(tmp_path / "with", tmp_path / "without", step=6)
    assert len(test) == 3 and {task.split for task in read} == {"train"}


def test_a_loss_that_is_not_finite_stops_the_run(world, tiny_run, tmp_path, monkeypatch, capsys):
    """And is never saved: the last checkpoint is a good one."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "6")
    load = checkpoint.load

    def load_diverged(path, **options):
        loaded = load(path, **options)
        params = jax.tree.map(lambda x: x + jnp.inf, loaded.state.params)
        return loaded._replace(state=loaded.state.replace(params=params))

    monkeypatch.setattr(checkpoint, "load", load_diverged)
    assert train(world, run) == 2
    message = capsys.readouterr().err
    assert "loss/critic" in message and "not finite in update 5" in message
    assert "The checkpoint of update 4 is intact" in message
    assert checkpoint.find(run)[1] == 4


def test_a_run_folder_says_what_it_is(tiny_run, world):
    config = json.loads((tiny_run / "config.json").read_text())
    assert config["data"]["manifest"] == str(world.manifest) and config["model"]["width"] == 16
    metadata = checkpoint.load(tiny_run).metadata
    assert metadata["manifest"]["family"] == "point_robot" and metadata["observation_size"] == 2
    # An automatic discount is resolved in the checkpoint, and left automatic in the file that a rerun is compared with.
    assert config["agent"]["discount"] == 0.0
    assert json.loads(metadata["config"])["agent"]["discount"] == pytest.approx(0.9)
