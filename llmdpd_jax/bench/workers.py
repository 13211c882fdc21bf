"""Sides of a comparison, each in a process of its own, which take turns.

A process of its own gives each side its own thread pools and a peak of memory that is its alone. Taking turns within
one run, forth and back, spreads what disturbs the machine over all sides.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmdpd_jax.bench.machine import keep_to_cpus, peak_memory
from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.errors import UserError

MATMUL_REPEATS = 3
REST = 0.2  # seconds before each turn, in which the thread pools of the side before it fall asleep


class Side(Protocol):
    """What a worker process measures. Made from keyword arguments that are plain JSON values."""

    def facts(self) -> dict:
        """What the benchmark has to know of it, as plain JSON values."""

    def run(self) -> None:
        """The work, done when it returns."""

    def result(self, layer: int | None) -> np.ndarray:
        """What the work gives, to be compared with other sides; `layer` says which of several results."""

    def matmul(self) -> float:
        """FLOP/s of one large matrix product in the precision of the work."""


class Worker:
    """A side in a process of its own. A context manager: on leaving, the process ends."""

    def __init__(self, name: str, side: type, arguments: Mapping[str, Any], cpus: Sequence[int]):
        self.name, self._side, self._arguments, self._cpus = name, side, arguments, list(cpus)

    def __enter__(self) -> "Worker":
        """Starts the process and waits until its side is made. Raises UserError if that fails."""
        threads = str(len(self._cpus))
        own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        # The same code as here, also where the package is not installed.
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.getenv("PYTHONPATH")]))
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | own,
            text=True,
        )
        try:
            self.ask(module=self._side.__module__, side=self._side.__name__, arguments=self._arguments, cpus=self._cpus)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, **request: Any) -> Any:
        """Sends a request and waits for the answer. Raises UserError with the side's message if it failed."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{self.name}: its process ended ({last}); perhaps there is too little memory")
        answer = json.loads(answer)
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']}")
        return answer["value"]

    def result(self, layer: int | None = None) -> np.ndarray:
        """The side's result."""
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "result.npy")
            self.ask(do="result", file=file, layer=layer)
            return np.load(file)


def take_turns(workers: Mapping[str, Worker], repeats: int, peak: bool = True) -> tuple[dict[str, float], float]:
    """Median seconds of each worker's work, and the highest FLOP/s that any of them reached in a matrix product.

    Every worker works once before (compilation). Every second round goes the other way round. Without `peak` no matrix
    product is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    highest = 0.0
    order = list(workers)
    with progress_bar() as bar:
        for turn in bar.track(range(repeats + 1), description="taking turns"):
            for name in order if turn % 2 else reversed(order):
                time.sleep(REST)
                elapsed = workers[name].ask(do="time")
                if turn:
                    seconds[name].append(elapsed)
                if turn and peak:
                    highest = max(highest, workers[name].ask(do="matmul"))
    return {name: statistics.median(times) for name, times in seconds.items()}, highest


def serve() -> None:
    """A worker's process: makes the side that the first line of standard input names, then does what lines ask for."""
    # What libraries print must not be taken for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if side is None:
                keep_to_cpus(request["cpus"])
                side = getattr(importlib.import_module(request["module"]), request["side"])(**request["arguments"])
                value = None
            else:
                value = _answer(side, **request)
            answer = {"value": value}
        except Exception as error:
            # The other process has to end well whatever happened in this one.
            answer = {"error": f"{error if isinstance(error, UserError) else repr(error)}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(side: Side, do: str, file: str | None = None, layer: int | None = None) -> Any:
    if do == "time":
        start = time.perf_counter()
        side.run()
        return time.perf_counter() - start
    if do == "matmul":
        return max(side.matmul() for _ in range(MATMUL_REPEATS))
    if do == "memory":
        return peak_memory()
    if do == "result":
        return np.save(file, side.result(layer))
    return side.facts()


if __name__ == "__main__":
    serve()
