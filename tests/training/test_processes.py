"""Several processes train, save and evaluate as one."""

import json
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from llmdpd_jax.cli.main import main
from llmdpd_jax.training import checkpoint
from llmdpd_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow


def start(world, environment, count, *arguments, each=None):
    """A job of `count` processes on this machine, that reach each other over loopback; `each` with more arguments."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = environment | world.environment() | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "llmdpd_jax", *arguments, f"--coordinator={address}", f"--num-processes={count}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    each = each or [[]] * count
    return [
        subprocess.Popen([*command, *more, f"--process-id={i}"], env=environment, **pipes)
        for i, more in enumerate(each)
    ]


def finish(job, timeout=600):
    """Waits for all; their output."""
    outputs = [process.communicate(timeout=timeout)[0] for process in job]
    assert [process.returncode for process in job] == [0] * len(job), "\n".join(outputs)
    return outputs


def params(run):
    return checkpoint.load(run).state.params


def apart(one, other):
    return max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@pytest.fixture
def alone(world, tmp_path):
    """A run of one process, with steps so small that rounding does not grow."""
    run = tmp_path / "alone"
    assert main(["train", *world.config(optimiser__learning_rate=1e-6), f"--out={run}"]) == 0
    assert main(["evaluate", str(run)]) == 0
    return run


@pytest.mark.parametrize(("count", "form"), [(2, "fsdp"), (4, "shard_map")])
def test_processes_train_and_evaluate_as_one(world, alone, tmp_path, subprocess_environment, count, form):
    run = tmp_path / "run"
    arguments = ["train", *world.config(optimiser__learning_rate=1e-6, train__form=form), f"--out={run}"]
    outputs = finish(start(world, subprocess_environment, count, *arguments))
    assert "trained to update 6" in outputs[0] and "trained to update" not in outputs[1]
    assert apart(params(run), params(alone)) < 1e-5
    assert (run / "metrics.csv").read_text().count("\n") == 4
    finish(start(world, subprocess_environment, count, "evaluate", str(run)))
    found, expected = (json.loads((one / "results.json").read_text())["rows"] for one in (run, alone))
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert [mine[name] for name in ("task", "prompt", "wording")] == [
            theirs[name] for name in ("task", "prompt", "wording")
        ]
        np.testing.assert_allclose(mine["returns"], theirs["returns"], atol=0.05)


def test_a_killed_process_costs_the_updates_since_the_last_checkpoint(world, tmp_path, subprocess_environment):
    """One of two is killed: the other ends with a message, and the job that is started again goes on to the end."""
    # No save begins before the last is done: a process that waits for one learns of the loss from a timeout only.
    run, every, saves = tmp_path / "run", 20, 100
    arguments = world.config(train__steps=400, train__log_every=every, train__checkpoint_every=saves)
    job = start(world, subprocess_environment, 2, "train", *arguments, f"--out={run}")
    try:
        deadline = time.monotonic() + 600
        while not [path for path in run.glob("checkpoints/*") if path.name.isdigit()]:
            assert time.monotonic() < deadline, "no checkpoint was written"
            assert job[0].poll() is None, job[0].communicate()[0]
            time.sleep(0.01)
        job[1].kill()
        told, _ = job[0].communicate(timeout=300)
    finally:
        for process in job:
            process.kill()
    assert job[0].returncode == 2, told
    assert f"--resume={run}" in told and "Traceback" not in told
    saved = checkpoint.find(run)[1]
    logged = int(read_metrics(run / "metrics.csv")["step"][-1])
    assert 0 <= logged - saved <= 2 * saves < 300  # what is being written is lost, too
    finish(start(world, subprocess_environment, 2, "train", f"--resume={run}"))
    np.testing.assert_array_equal(read_metrics(run / "metrics.csv")["step"], np.arange(every, 401, every))
    assert checkpoint.find(run)[1] == 400


def test_what_one_process_cannot_read_ends_all(world, alone, tmp_path, subprocess_environment):
    """The leader or another finds no manifest: the other says so at once, not after a time-out."""
    missing = tmp_path / "missing.json"
    train = ["train", *world.config(), f"--out={tmp_path / 'run'}"], f"--config.data.manifest={missing}"
    evaluate = ["evaluate", str(alone), f"--out={tmp_path / 'scores'}"], f"--manifest={missing}"
    for (common, fault), broken in ((train, 0), (train, 1), (evaluate, 1)):
        each = [[fault] if i == broken else [] for i in range(2)]
        job = start(world, subprocess_environment, 2, *common, each=each)
        outputs = [process.communicate(timeout=300)[0] for process in job]
        assert [process.returncode for process in job] == [2, 2], outputs
        assert f"error: {missing}" in outputs[broken]
        assert "another process of this job failed" in outputs[1 - broken] and "Traceback" not in "".join(outputs)


def test_a_coordinator_alone_is_refused(capsys):
    assert main(["train", "--out=x", "--coordinator=localhost:1"]) == 2
    assert "give all three" in capsys.readouterr().err
    assert main(["train", "--out=x", "--coordinator=localhost:1", "--num-processes=2", "--process-id=2"]) == 2
    assert "--process-id: 2 is not one of 0 to 1" in capsys.readouterr().err
