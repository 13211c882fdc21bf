"""Locks, damaged checkpoints, memory and disk that do not suffice: one message each, and nothing lost unnoticed.

`experiments/faults/run.py` has processes killed and disks filled in earnest.
"""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from llmdpd_jax.cli.main import explain_limits, main
from llmdpd_jax.errors import UserError, out_of_memory, why_not_writable
from llmdpd_jax.training import checkpoint, loop
from llmdpd_jax.training.limits import describe_sizes, in_words
from llmdpd_jax.training.lock import check_unlocked, run_lock
from llmdpd_jax.training.metrics import MetricsWriter


@pytest.fixture
def refused(capfd):
    """`refused(*arguments)`: the message with which the command line refuses."""

    def run(*arguments) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        err = capfd.readouterr().err
        assert "Traceback" not in err
        return err[err.index("error: ") :]

    return run


@pytest.fixture
def unfinished(world, tiny_run, tmp_path):
    """A run that has its last two updates before it."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "6")
    return run


# --- lock -------------------------------------------------------------------------------------------------------------


def test_one_process_trains_in_a_folder(world, tiny_run, tmp_path, refused, monkeypatch):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.setattr(loop, "prepare", lambda config: pytest.fail("it was to be refused at once"))
    with run_lock(run):
        message = refused("train", f"--resume={run}")
        assert f"{run}: another process trains there" in message
        assert f"host {socket.gethostname()}, process {os.getpid()}" in message
        assert checkpoint.load(run).state.step == 6, "it can be read meanwhile"
    check_unlocked(run)


def test_a_killed_process_leaves_no_lock(tmp_path, subprocess_environment):
    code = f"""
from pathlib import Path
from llmdpd_jax.training.lock import run_lock
with run_lock(Path({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=subprocess_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid}"), run_lock(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    with run_lock(tmp_path):
        assert f"process {os.getpid()}\n" in (tmp_path / "lock").read_text()


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


def save_unhashed(run, state, found) -> None:
    """Writes step 6 anew with this state and the hashes of the old one: as a damage that Orbax lets through."""
    metadata = json.loads((run / "checkpoints" / "6" / "metadata" / "metadata").read_text())
    shutil.rmtree(run / "checkpoints" / "6")
    parts = {
        "networks": state.replace(opt_state=()),
        "optimiser": state.opt_state,
        "statistics": {"data": found.statistics, "text": found.text_statistics},
    }
    arguments = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
    with ocp.CheckpointManager((run / "checkpoints").absolute()) as manager:
        manager.save(6, args=ocp.args.Composite(**arguments, metadata=ocp.args.JsonSave(metadata)))


@pytest.mark.parametrize("part", ["networks", "optimiser"])
def test_a_flipped_bit_is_noticed(world, tiny_run, tmp_path, refused, part):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    found = checkpoint.load(run, optimiser=True)
    state = found.state
    leaves, tree = jax.tree.flatten(state.opt_state if part == "optimiser" else state.params)
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    weights = np.array(leaves[largest])
    weights.view(np.uint32).flat[7] ^= 1  # the last bit of one weight
    leaves[largest] = jnp.asarray(weights)
    changed = {"opt_state" if part == "optimiser" else "params": tree.unflatten(leaves)}
    save_unhashed(run, state.replace(**changed), found)
    message = refused("train", f"--resume={run}")
    assert f"{run / 'checkpoints' / '6'}: damaged: {part} is not what was saved" in message
    assert f"The checkpoint of update 4 is whole: name it ({run / 'checkpoints' / '4'})" in message
    assert f"rm -r {run / 'checkpoints' / '6'} && llmdpd train --resume={run}" in message
    if part == "optimiser":
        assert checkpoint.load(run).state.step == 6, "acting asks for nothing of it"
    save_unhashed(run, state, found)
    assert checkpoint.load(run, optimiser=True).state.step == 6, "without the flipped bit it is whole"


def test_changed_metadata_are_noticed(world, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for step in ("4", "6"):
        file = run / "checkpoints" / step / "metadata" / "metadata"
        text = file.read_text()
        assert text.count('\\"tau\\": 0.005') == 1
        file.write_text(text.replace('\\"tau\\": 0.005', '\\"tau\\": 0.015'))
    with pytest.raises(UserError, match=r"metadata are not what was saved.*No older checkpoint of the run is whole"):
        checkpoint.load(run)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_device_memory(unfinished, refused, monkeypatch):
    """JAX's own error, with what is large and what lowers it."""
    huge = jax.jit(lambda state, *inputs: (state, {"loss": jnp.ones(10**13)}))
    monkeypatch.setattr(loop, "make_train_call", lambda *arguments: huge)
    message = refused("train", f"--resume={unfinished}")
    assert "training ran out of memory (RESOURCE_EXHAUSTED" in message
    assert "In memory: the data 0.0 MB, parameters and optimiser 0." in message
    assert "a call of updates" in message
    for field in ("data.groups", "data.group_size", "model.width", "data.parts", "data.streaming"):
        assert field in message


def test_host_memory(unfinished, refused, monkeypatch):
    monkeypatch.setattr(loop, "prepare", lambda config: np.ones(10**17))
    message = refused("train", f"--resume={unfinished}")
    assert "ran out of memory (Unable to allocate" in message and "data.streaming=True" in message


def test_memory_of_an_evaluation():
    with pytest.raises(RuntimeError) as failure:
        jnp.zeros(10**13).block_until_ready()
    message = explain_limits("evaluate", failure.value)
    assert message.startswith("evaluate: ran out of memory (RESOURCE_EXHAUSTED") and "Lower --episodes" in message
    assert explain_limits("evaluate", RuntimeError("a bug")) is None


def test_sizes():
    data, state = np.zeros((1000, 1000), np.float32), {"w": jnp.zeros(500, jnp.int32)}
    call = jax.jit(lambda x: x @ x @ x)
    told = describe_sizes(data, state, lambda: call.lower(data).compile())
    assert told.startswith("In memory: the data 4.0 MB, parameters and optimiser 0.0 MB, a call of updates ")
    assert describe_sizes(None, state, lambda: 1 / 0) == "In memory: parameters and optimiser 0.0 MB"
    assert in_words(2_340_000_000) == "2.3 GB"


# --- disk -------------------------------------------------------------------------------------------------------------


def fails(error):
    def write(*_, **__):
        raise error

    return write


def test_full_disk(unfinished, refused, monkeypatch):
    """While metrics are written, or in Orbax's words while a checkpoint is. With room, the run goes on."""
    go_on = (
        f"The checkpoint of update 4 is safe. When it can be written, go on with: llmdpd train --resume={unfinished}"
    )
    of_system = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(unfinished / "metrics.csv"))
    of_orbax = ValueError("RESOURCE_EXHAUSTED: Error writing file: No space left on device [source locations='...']")
    for place, name, error in (
        (MetricsWriter, "write", of_system),
        (checkpoint, "save", of_orbax),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fails(error))
            message = refused("train", f"--resume={unfinished}")
        assert f"{unfinished}: cannot be written (No space left on device" in message and go_on in message
    assert main(["train", f"--resume={unfinished}"]) == 0
    assert checkpoint.load(unfinished).state.step == 6


def test_folder_that_cannot_be_made(world, tmp_path, refused, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "make_folders", fails(PermissionError(errno.EACCES, "Permission denied", str(run))))
    message = refused("train", *world.config(), f"--out={run}")
    assert f"{run}: cannot be written (Permission denied: {run}). Nothing was trained" in message


def test_metrics_of_a_full_disk_end_with_an_error(tmp_path):
    """And do not wait for ever for a thread that the full disk has ended."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if done.returncode:
        pytest.skip("nothing can be mounted here: it takes root")
    try:
        with pytest.raises(OSError) as failure, MetricsWriter(tmp_path / "run") as metrics:
            for step in range(10**4):
                metrics.write(step, {f"loss/{name}": 0.1 for name in "abcdefgh"})
        assert failure.value.errno == errno.ENOSPC
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("error", "memory", "disk"),
    [
        (MemoryError(), True, None),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), False, "Disk quota exceeded"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), False, "Read-only file system: /x/y"),
        (FileExistsError(errno.EEXIST, "File exists", "/x"), False, "File exists: /x"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), False, "Not a directory: /x/y"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), False, "Is a directory: /x"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), False, None),
        (ValueError("RESOURCE_EXHAUSTED: write: No space left on device"), False, "No space left on device"),
        (RuntimeError("RESOURCE_EXHAUSTED"), False, None),
        (ValueError("other"), False, None),
    ],
)
def test_errors_are_told_apart(error, memory, disk):
    assert (out_of_memory(error), why_not_writable(error)) == (memory, disk)


def test_other_errors_are_left_as_they_are(unfinished, monkeypatch):
    monkeypatch.setattr(MetricsWriter, "write", fails(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", f"--resume={unfinished}"])
