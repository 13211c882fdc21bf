"""Workers: a process each, taking turns, failing in words."""

import os

import numpy as np
import pytest
from sides import Sleeper

from llmdpd_jax.bench import workers as module
from llmdpd_jax.bench.machine import choose_cpus, peak_memory
from llmdpd_jax.bench.workers import Worker, take_turns
from llmdpd_jax.errors import UserError

CPUS = sorted(os.sched_getaffinity(0))[:1]


@pytest.fixture
def sleeper(tmp_path, monkeypatch):
    """`sleeper(seconds)`: a worker that is not started yet."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.setattr(module, "REST", 0.0)
    return lambda seconds: Worker(
        f"sleeper {seconds}", Sleeper, {"seconds": seconds, "log": str(tmp_path / "log")}, CPUS
    )


def test_turns_are_taken_forth_and_back(sleeper, tmp_path):
    with sleeper(0.05) as short, sleeper(0.15) as long:
        seconds, peak = take_turns({"short": short, "long": long}, 3)
        assert short.ask(do="memory") > 1e6
        assert short.ask(do="facts") == {"cpus": CPUS, "threads": "1"}
        np.testing.assert_array_equal(long.result(), np.full((2, 3), 0.15))
        np.testing.assert_array_equal(long.result(7), np.full((2, 3), 7))
    assert 0.05 <= seconds["short"] < 0.15 <= seconds["long"]
    assert peak == 1e9 * 0.15
    assert (tmp_path / "log").read_text().split() == ["0.15", "0.05", "0.05", "0.15", "0.15", "0.05", "0.05", "0.15"]


def test_failures(sleeper):
    with pytest.raises(UserError, match="sleeper -1: cannot sleep for -1"), sleeper(-1):
        pass
    with sleeper(0.0) as worker, pytest.raises(UserError, match=r"sleeper 0\.0: .*unexpected keyword"):
        worker.ask(do="time", loudly=True)


def test_a_process_that_dies(sleeper, monkeypatch):
    with sleeper(0.0) as worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(UserError, match="its process ended"):
            worker.ask(do="time")


def test_cpus():
    allowed = sorted(os.sched_getaffinity(0))
    assert choose_cpus(None) == allowed
    assert choose_cpus(1) == allowed[:1]
    for threads in (0, len(allowed) + 1):
        with pytest.raises(UserError, match=f"may use 1 to {len(allowed)} CPUs, found {threads}"):
            choose_cpus(threads)


def test_peak_memory_sees_what_was_freed():
    before = peak_memory()
    array = np.ones(30_000_000)  # 240 MB
    del array
    assert peak_memory() >= before
    assert peak_memory() > 240e6
