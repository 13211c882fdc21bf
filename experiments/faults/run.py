"""What faults cost and what the user is told: each is made to happen to a run of seconds; writes docs/faults.md.

python experiments/faults/run.py            # all, some minutes; a full disk takes root, for a small one is mounted
python experiments/faults/run.py sigkill lock
"""

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import numpy as np

REPOSITORY = Path(__file__).parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))
from tiny_llama import CONFIG, tiny_tensors, write_folder  # noqa: E402

from llmdpd_jax.data.logs import collected  # noqa: E402
from llmdpd_jax.errors import UserError  # noqa: E402
from llmdpd_jax.tasks.manifest import load_manifest, save_manifest  # noqa: E402
from llmdpd_jax.training import checkpoint  # noqa: E402
from llmdpd_jax.training.metrics import read_metrics  # noqa: E402

FLIPS = 60  # bits flipped in a checkpoint, one at a time
WAIT_S = 300  # seconds for anything a process is waited for
FIELDS = {  # of a config with which a run takes seconds
    "data.manifest": "tasks.json",
    "data.groups": 8,
    "data.group_size": 4,
    "text.source": "llm",
    "text.layer": 2,
    "model.context_width": 16,
    "model.model_width": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.text_layers": 0,
    "model.trajectory_layers": 1,
    "train.steps": 6,
    "train.log_every": 2,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 3,
    "evaluation.episodes": 2,
}
LONG = {"train__steps": 10**6, "train__log_every": 20, "train__checkpoint_every": 200}


class Row(NamedTuple):
    """What a fault came to."""

    lost: str
    told: str  # the message, as it was printed
    status: int  # of the process that the fault befell
    after: str  # what was checked afterwards


class Place:
    """A folder with data and an LLM of random weights, in which processes work."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.variables = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "MINARI_DATASETS_PATH": str(folder / "minari"),
            "LLMDPD_CACHE": str(folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        os.environ["MINARI_DATASETS_PATH"] = self.variables["MINARI_DATASETS_PATH"]
        write_folder(folder / "llm", tiny_tensors(), CONFIG | {"max_position_embeddings": 512})
        self.finish("collect", "--episodes=4", "--out=all")
        manifest = load_manifest(folder / "all")
        tasks = [task for split in ("train", "test") for task in manifest.tasks if task.split == split]
        few = [
            dataclasses.replace(
                task, descriptions=task.descriptions[:2], held_out_descriptions=task.held_out_descriptions[:1]
            )
            for task in tasks[:5] + tasks[-3:]
        ]
        save_manifest(dataclasses.replace(manifest, tasks=tuple(few)), folder / "tasks.json")
        self.finish("train", *self.config(), "--out=whole", "--devices=1")

    def config(self, **changes) -> list[str]:
        """Arguments of `llmdpd train`; a change is given as section__field=value."""
        fields = FIELDS | {name.replace("__", "."): value for name, value in changes.items()}
        return [
            f"--config={REPOSITORY / 'configs' / 'point_robot.py'}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ]

    @contextlib.contextmanager
    def start(self, *arguments: str, **variables: str) -> Iterator[subprocess.Popen]:
        """A process of the command line, which does not outlive the block."""
        process = subprocess.Popen(
            [sys.executable, "-m", "llmdpd_jax", *arguments],
            cwd=self.folder,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit status and message of a command."""
        with self.start(*arguments, **variables) as process:
            output, _ = process.communicate(timeout=WAIT_S)
        return process.returncode, self.message(output)

    def finish(self, *arguments: str, **variables: str) -> None:
        """Runs a command that must succeed."""
        status, message = self.run(*arguments, **variables)
        assert status == 0, message

    def message(self, output: str) -> str:
        """The error in what a command printed, or its last line; without what is this machine's alone."""
        lines = [line for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        # Orbax logs what befell its threads; what matters is that our own message is what the command ends with.
        assert not lines or not lines[-1].startswith((" ", "Traceback")), output
        text = errors[-1] if errors else ""
        return text.replace(f"{self.folder}/", "").replace(socket.gethostname(), "HOST")

    def copy(self, name: str) -> Path:
        """A copy of the finished run, to be damaged."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return shutil.copytree(self.folder / "whole", self.folder / name)

    def as_whole(self, run: str | Path) -> str:
        """How a run compares with the one that nothing befell."""
        steps = [self.folder / one / "checkpoints" / "6" for one in ("whole", run)]
        states = [checkpoint.load(step, optimiser=True).state for step in steps]
        pairs = list(zip(*map(jax.tree.leaves, states), strict=True))
        if all(np.array_equal(a, b) for a, b in pairs):
            return "the same, bit for bit, as the run that nothing befell"
        # Relative to numbers of size one: the smallest are rounding and no more.
        apart = max(float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1.0))) for a, b in pairs)
        return f"parameters and optimiser within {apart:.0e} of the run that nothing befell"


def wait_until(found: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns when it is so."""
    deadline = time.monotonic() + WAIT_S
    while not found():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def logged(run: Path) -> int:
    """The last update that the metrics of a run tell of."""
    try:
        return int(read_metrics(run / "metrics.csv")["step"][-1])
    except (UserError, IndexError):
        return 0


def goes_on(place: Place, run: Path) -> str:
    """Resumes a long run, and stops it when it has saved something new."""
    before = checkpoint.find(run)[1]
    with place.start("train", f"--resume={run.name}") as process:
        wait_until(lambda: checkpoint.find(run)[1] > before, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    steps = read_metrics(run / "metrics.csv")["step"]
    assert np.all(np.diff(steps) > 0) and checkpoint.load(run).state.step == steps[-1]
    return f"`--resume` goes on from update {before}; no update is logged twice"


# --- faults -----------------------------------------------------------------------------------------------------------


def sigterm(place: Place) -> Row:
    """SIGTERM (or SIGINT) while training"""
    run = place.folder / "terminated"
    with place.start("train", *place.config(**LONG), "--out=terminated") as process:
        wait_until(lambda: logged(run) >= 300, process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=WAIT_S)
    step, last = checkpoint.find(run)[1], logged(run)
    assert step == last
    return Row("nothing: a checkpoint of the last update is written", place.message(output), process.returncode, "")


def sigkill(place: Place) -> Row:
    """SIGKILL while training"""
    run = place.folder / "killed"
    with place.start("train", *place.config(**LONG), "--out=killed") as process:
        wait_until(lambda: logged(run) >= 300 and checkpoint_there(run), process)
        process.kill()
        process.communicate(timeout=WAIT_S)
    step, last = checkpoint.find(run)[1], logged(run)
    lost = f"{last - step} logged updates: from the last checkpoint (update {step}) on"
    assert 0 <= last - step <= 2 * LONG["train__checkpoint_every"]
    return Row(lost, "nothing", process.returncode, goes_on(place, run))


def sigkill_saving(place: Place) -> Row:
    """SIGKILL while a checkpoint is written"""
    run = place.folder / "killed_saving"
    often = LONG | {"train__checkpoint_every": 20, "train__keep_checkpoints": 2}
    with place.start("train", *place.config(**often), "--out=killed_saving") as process:
        wait_until(
            lambda: logged(run) >= 100 and checkpoint_there(run) and bool(list(run.glob("checkpoints/*tmp*"))), process
        )
        process.kill()
        process.communicate(timeout=WAIT_S)
    half, step, last = list(run.glob("checkpoints/*tmp*")), checkpoint.find(run)[1], logged(run)
    assert checkpoint.load(run).state.step == step
    after = goes_on(place, run)
    left = "" if list(run.glob("checkpoints/*tmp*")) == half else "; the half-written folder is cleared away"
    lost = f"{last - step} logged updates: from the last whole checkpoint (update {step}) on"
    return Row(lost, "nothing", process.returncode, after + left)


def sigkill_collecting(place: Place) -> Row:
    """SIGKILL during `llmdpd collect`"""
    arguments = "collect", "--episodes=8", "--out=killed_collect"
    data = place.folder / "minari" / "point_robot" / "mixed-e8-s0"
    with place.start(*arguments) as process:
        wait_until(lambda: len(list(data.glob("*"))) > 20, process)
        process.kill()
        process.communicate(timeout=WAIT_S)
    whole = collected("point_robot")["mixed-e8-s0"]
    place.finish(*arguments)
    assert 0 < whole < 60 and collected("point_robot")["mixed-e8-s0"] == 60
    after = f"{whole} of 60 data sets are whole, and the same command again writes the rest"
    return Row("the data sets that were not yet written", "nothing", process.returncode, after)


def second_process(place: Place) -> Row:
    """A second process trains in the same run folder"""
    run = place.folder / "shared"
    with place.start("train", *place.config(**LONG), "--out=shared") as process:
        wait_until(lambda: checkpoint_there(run), process)
        status, told = place.run("train", "--resume=shared")
        before = logged(run)
        wait_until(lambda: logged(run) > before, process)
        process.kill()
        process.wait()
    return Row(
        "nothing: the first goes on",
        told,
        status,
        "the lock of a process that was killed is free: " + goes_on(place, run),
    )


def checkpoint_there(run: Path) -> bool:
    with contextlib.suppress(UserError):
        return checkpoint.find(run)[1] > 0
    return False


def truncated(place: Place) -> Row:
    """The newest checkpoint is cut short"""
    run = place.copy("truncated")
    files = [path for path in (run / "checkpoints" / "6").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    status, told = place.run("train", "--resume=truncated")
    shutil.rmtree(run / "checkpoints" / "6")
    place.finish("train", "--resume=truncated")
    return Row(
        "the updates since the one before", told, status, f"after that command the run ends {place.as_whole(run)}"
    )


def flipped(place: Place) -> Row:
    """One bit of the newest checkpoint is flipped"""
    run = place.copy("flipped")
    whole = jax.tree.leaves(checkpoint.load(run, optimiser=True).state)
    files = sorted(path for path in (run / "checkpoints" / "6").rglob("*") if path.is_file())
    rng, outcomes, last = random.Random(0), Counter(), None
    for _ in range(FLIPS):
        file = rng.choices(files, [path.stat().st_size for path in files])[0]
        content = file.read_bytes()
        place_of_bit = rng.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place_of_bit // 8] ^= 1 << place_of_bit % 8
        file.write_bytes(changed)
        try:
            read = jax.tree.leaves(checkpoint.load(run, optimiser=True).state)
            same = all(np.array_equal(a, b) for a, b in zip(whole, read, strict=True))
            outcomes["the same numbers read" if same else "OTHER NUMBERS READ"] += 1
        except UserError as error:
            outcomes[
                "by their hash" if "by its hash" in str(error) or "by their hash" in str(error) else "refused"
            ] += 1
            last = file, bytes(changed)
        file.write_bytes(content)
    assert not outcomes["OTHER NUMBERS READ"]
    last[0].write_bytes(last[1])
    status, told = place.run("train", "--resume=flipped")
    refused = outcomes["refused"] + outcomes["by their hash"]
    after = (
        f"of {FLIPS} bits, one at a time: {refused} refused ({outcomes['by their hash']} of them by the hash alone), "
        f"{outcomes['the same numbers read']} read as the same numbers (the bit is in no array that is read)"
    )
    return Row("the updates since the one before", told, status, after)


def full_disk(place: Place) -> Row:
    """The disk is full while a checkpoint is written"""
    small = place.folder / "small"
    one = sum(-(-path.stat().st_size // 4096) * 4 for path in (place.folder / "whole" / "checkpoints" / "4").rglob("*"))
    with mounted(small, f"{int(2.5 * one)}k"):
        status, told = place.run("train", *place.config(), "--out=small/run", "--devices=1")
        kept = checkpoint.find(small / "run")[1]
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        place.finish("train", "--resume=small/run", "--devices=1")
        after = f"with room, that command ends {place.as_whole('small/run')}"
    return Row(f"the updates since the last whole checkpoint (update {kept})", told, status, after)


def read_only(place: Place) -> Row:
    """The run folder cannot be written"""
    small = place.folder / "read_only"
    with mounted(small, "100m"):
        shutil.copytree(place.folder / "whole", small / "run")
        shutil.rmtree(small / "run" / "checkpoints" / "6")
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        status, told = place.run("train", "--resume=read_only/run", "--devices=1")
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        place.finish("train", "--resume=read_only/run", "--devices=1")
        after = f"when it can, that command ends {place.as_whole('read_only/run')}"
    return Row("nothing", told, status, after)


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A small disk in memory at the folder."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        raise NotPossible("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class NotPossible(Exception):
    """A fault that cannot be made on this machine."""


def corrupt_data(place: Place) -> Row:
    """A Minari data set is cut short"""
    with damaged(place, lambda file: os.truncate(file, file.stat().st_size // 2)):
        status, told = place.run("train", *place.config(), "--out=corrupt")
    assert not (place.folder / "corrupt").exists()
    return Row("nothing: refused before training", told, status, "no run folder was made")


def nan_in_data(place: Place) -> Row:
    """A logged reward is NaN"""

    def spoil(path: Path) -> None:
        with h5py.File(path, "a") as file:
            file["episode_1"]["rewards"][3] = np.nan

    with damaged(place, spoil):
        status, told = place.run("train", *place.config(), "--out=nan_data")
    assert not (place.folder / "nan_data").exists()
    return Row("nothing: refused before training", told, status, "no run folder was made")


@contextlib.contextmanager
def damaged(place: Place, damage: Callable[[Path], None]) -> Iterator[None]:
    """The data of the first train task are damaged for a while."""
    task = load_manifest(place.folder / "tasks.json").tasks[0]
    file = place.folder / "minari" / task.dataset / "data" / "main_data.hdf5"
    content = file.read_bytes()
    damage(file)
    try:
        yield
    finally:
        file.write_bytes(content)


def nan_in_parameters(place: Place) -> Row:
    """Parameters become NaN"""
    run = place.copy("nan_parameters")
    good = checkpoint.load(run / "checkpoints" / "4", optimiser=True)
    params = jax.tree.map(lambda x: x * np.nan, good.state.params)
    for step in ("4", "6"):
        shutil.rmtree(run / "checkpoints" / step)
    with checkpoint.manager(run, 3) as manager:
        state = good.state.replace(params=params)
        checkpoint.save(manager, state, good.statistics, good.text_statistics, good.metadata)
    status, told = place.run("train", "--resume=nan_parameters", "--devices=1")
    assert not (run / "checkpoints" / "6").exists()
    return Row("the updates since the last good checkpoint", told, status, "what is not finite is not saved")


def other_devices(place: Place) -> Row:
    """Saved on another number of devices: 1, then 8, then 2"""
    run = place.copy("devices")
    status = 0
    for count, keep in ((8, ("2",)), (2, ("2", "4"))):
        for folder in (run / "checkpoints").iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder)
        flags = f"--xla_force_host_platform_device_count={count}"
        status, told = place.run("train", "--resume=devices", f"--devices={count}", XLA_FLAGS=flags)
        assert status == 0, told
    return Row("nothing", told, status, f"it ends with {place.as_whole(run)}")


def out_of_memory(place: Place) -> Row:
    """Memory does not suffice for training"""
    status, told = place.run("train", *place.config(data__group_size=10**9), "--out=memory", "--devices=1")
    return Row("nothing before the first call; later the updates since the last checkpoint", told, status, "")


def out_of_memory_evaluating(place: Place) -> Row:
    """Memory does not suffice for an evaluation"""
    status, told = place.run("evaluate", "whole", "--best-of=1000000000", "--out=scores")
    return Row("nothing", told, status, "")


FAULTS = (
    *(sigterm, sigkill, sigkill_saving, sigkill_collecting, second_process),
    *(truncated, flipped, full_disk, read_only),
    *(corrupt_data, nan_in_data, nan_in_parameters, out_of_memory, out_of_memory_evaluating, other_devices),
)

HEAD = """# Faults

What is lost, and what the user is told. Each line was made to happen to a run of seconds by
`python experiments/faults/run.py`, which wrote this page; messages are as they were printed. A run loses at most the
updates since its last checkpoint (`train.checkpoint_every`), and `llmdpd train --resume=RUN` goes on with it to the
same bits. Exit status: 0 done, 2 explained in one message, 130 stopped by SIGINT or SIGTERM with a checkpoint, -9
killed.

| fault | lost | told | status | checked afterwards |
|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("names", nargs="*", metavar="FAULT", help="; ".join(fault.__name__ for fault in FAULTS))
    names = parser.parse_args().names
    chosen = [fault for fault in FAULTS if not names or fault.__name__ in names]
    table = HEAD
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for fault in chosen:
            try:
                row = fault(place)
            except NotPossible as reason:
                row = Row("", f"not tried: {reason}", 0, "")
            cells = fault.__doc__, row.lost, row.told, str(row.status), row.after
            line = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
            print(line, end="", flush=True)
            table += line
    if not names:
        (REPOSITORY / "docs" / "faults.md").write_text(table)


if __name__ == "__main__":
    main()
