"""A batch divided among eight devices is the batch of one; what crosses them is known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmdpd_jax.data.store import divide_store, task_rows
from llmdpd_jax.errors import UserError
from llmdpd_jax.types import Store

pytestmark = pytest.mark.xdist_group("devices")


def found(environment: dict, *arguments: str) -> dict:
    """What `devices.py` found."""
    environment = environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("devices.py")), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(eight_devices):
    """In single precision."""
    return found(eight_devices)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["eight", "pmap", "fsdp", "parts", "seeds"])
def test_parameters_and_losses_after_100_updates_are_those_of_one_device(report, case):
    """Of one process or of a run among several seeds, under shard_map or pmap, data copied or divided."""
    assert all(np.isfinite(value) for value in report["metrics"].values())
    assert report["apart"][case] <= 1e-5
    assert report["apart"]["other seed"] > 1e-3  # the numbers do differ between runs


@pytest.mark.slow
def test_so_they_are_at_the_default_learning_rate_in_double_precision(eight_devices):
    """In single precision rounding would grow with every step until it shows; here only a wrong sum could."""
    apart = found(eight_devices, "--double")
    assert set(apart) == {"eight", "pmap"} and max(apart.values()) <= 1e-6


@pytest.mark.slow
def test_networks_are_divided_among_devices_only_if_asked_for(report):
    assert report["held"] == {"shard_map": 1.0, "pmap": 1.0, "fsdp": 1 / 8}


@pytest.mark.slow
def test_a_step_holds_the_collectives_it_needs_and_no_other(report):
    """One all-reduce of all gradients and metrics. Beside it one of what losses are scaled by (mean size of Q, variance
    of the actions, pairs of one task), and what the losses between groups need: the text contexts twice and the
    trajectory contexts once, the tasks once, and the contexts' gradients back. Imaginary tasks need the vectors of the
    next group's text and trajectory, and their gradients back."""
    contexts, shares = ["all-gather f32[16,8]{1,0}"] * 5, ["reduce-scatter f32[2,8]{1,0}"] * 5
    reduced = report["parameters"] + len(report["metrics"]) - 1  # the norm of the gradient is found on each device
    expected = sorted(
        [
            *contexts,
            *shares,
            "all-gather s32[16]{0}",
            "all-reduce (f32[1]{0}, f32[1]{0}, f32[1]{0})",
            f"all-reduce f32[{reduced}]{{0}}",
        ]
    )
    assert report["collectives"] == {"one": [], "eight": expected, "parts": expected}


@pytest.fixture
def store():
    """13 episodes of three tasks; observations name their episode."""
    counts = [5, 4, 4]
    episodes = sum(counts)
    return Store(
        observations=np.broadcast_to(np.arange(episodes, dtype=np.float32)[:, None, None], (episodes, 3, 1)),
        actions=np.zeros((episodes, 2, 1), np.float32),
        rewards=np.zeros((episodes, 2), np.float32),
        terminations=np.zeros((episodes, 2), bool),
        lengths=np.full(episodes, 2, np.int32),
        task_id=np.repeat(np.arange(3, dtype=np.int32), counts),
        task_episodes=task_rows(counts),
        task_counts=np.array(counts, np.int32),
        weights=np.arange(episodes, dtype=np.float32),
    )


def test_parts_hold_every_episode_once_and_two_of_each_task(store):
    divided = divide_store(store, 2)
    np.testing.assert_array_equal(divided.task_counts, [[3, 2, 2], [2, 2, 2]])
    held = []
    for part in range(2):
        for task in range(3):
            rows = divided.task_episodes[part, task, : divided.task_counts[part, task]]
            assert (divided.task_id[part][rows] == task).all() and (divided.lengths[part][rows] == 2).all()
            held += divided.observations[part][rows][:, 0, 0].tolist()
    assert sorted(held) == list(range(13))
    # A short row repeats its own episodes.
    assert set(divided.task_episodes[0, 1]) == set(divided.task_episodes[0, 1, :2])


def test_one_part_is_the_store(store):
    whole = divide_store(store, 1)
    np.testing.assert_array_equal(whole.observations[0], store.observations)
    np.testing.assert_array_equal(whole.task_episodes[0], store.task_episodes)


def test_too_few_episodes_for_so_many_parts(store):
    with pytest.raises(UserError, match=r"task 1 has 4\. Choose at most 2"):
        divide_store(store, 3)
