"""What is streamed from files: the batches that `sample_batch` draws, for every host, and the same after a resume."""

import dataclasses
import json
import subprocess
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tagged import LENGTHS, check_prompts_are_of_other_episodes, check_transitions, check_windows, origin

from llmdpd_jax.data.episode_files import STEPS_FILE, open_episode_files
from llmdpd_jax.data.sampler import BatchSizes, sample_batch
from llmdpd_jax.data.store import load_split
from llmdpd_jax.data.streaming import BatchStream, make_draw, read_batch
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import require_split

MANY = BatchSizes(groups=6000, group_size=4, prompt_length=4)
FEW = BatchSizes(groups=4, group_size=3, prompt_length=4)


@pytest.fixture(scope="module")
def manifest(write_tagged_tasks):
    return write_tagged_tasks(LENGTHS)


@pytest.fixture(scope="module")
def files(manifest, tmp_path_factory):
    return open_episode_files(require_split(manifest, "train"), tmp_path_factory.mktemp("cache"), progress=False)


@pytest.fixture(scope="module")
def batch(files):
    return read_batch(files, MANY, make_draw(files, MANY, seed=0)(0))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_transitions_belong_together(batch):
    check_transitions(batch)


def test_prompt_is_a_window_of_another_episode_of_the_same_task(batch):
    check_prompts_are_of_other_episodes(batch)
    check_windows(batch.prompt, 4)


def cells(batch):
    """How often each combination was drawn: (prompt's episode, its start) and (prompt's episode, episode, step)."""
    prompt, start = origin(batch.prompt.observations[:, 0])
    episode, step = origin(batch.observations)
    windows, transitions = np.zeros((9, 7)), np.zeros((9, 9, 7))
    np.add.at(windows, (prompt, start), 1)
    np.add.at(transitions, (prompt[:, None], episode, step), 1)
    return windows, transitions


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_draws_are_distributed_as_those_of_the_store(files, manifest, share):
    """Chi-square per degree of freedom (at least 7): about 1 for two samples of one distribution."""
    sizes = dataclasses.replace(MANY, prompt_share=share)
    batch = read_batch(files, sizes, make_draw(files, sizes, seed=0)(0))
    store = load_split(manifest, "train", progress=False).store
    drawn = jax.jit(lambda keys: sample_batch(store, keys, sizes))(jax.random.split(jax.random.key(0), MANY.groups))
    for mine, theirs in zip(cells(batch), cells(drawn), strict=True):
        possible = mine + theirs > 0
        assert (mine[possible] > 0).all() and (theirs[possible] > 0).all()
        square = ((mine - theirs)[possible] ** 2 / (mine + theirs)[possible]).sum()
        assert 0.4 < square / (possible.sum() - 1) < 1.8


@pytest.mark.parametrize("chunk", [1, 3])
def test_values_are_those_of_the_store_to_the_bit(write_tagged_tasks, tmp_path, chunk):
    """At the steps that were drawn; only discounted sums may be rounded otherwise."""
    manifest = write_tagged_tasks([[3, 9, 5], [4, 3]], noise=0.1)
    sizes = BatchSizes(groups=300, group_size=3, prompt_length=4, chunk=chunk, discount=0.9)
    files = open_episode_files(require_split(manifest, "train"), tmp_path, progress=False)
    store = load_split(manifest, "train", progress=False).store
    np.testing.assert_array_equal(files.lengths, store.lengths)
    np.testing.assert_array_equal(files.task_id, store.task_id)
    draws = make_draw(files, sizes, seed=7)(3)
    found = read_batch(files, sizes, draws)
    steps = draws.episode[..., None], draws.step[..., None] + np.arange(chunk)
    assert (steps[1] < files.lengths[draws.episode][..., None]).all()
    np.testing.assert_array_equal(found.observations, store.observations[draws.episode, draws.step])
    np.testing.assert_array_equal(found.actions, store.actions[steps].reshape(300, 3, -1))
    np.testing.assert_array_equal(found.next_observations, store.observations[draws.episode, draws.step + chunk])
    np.testing.assert_array_equal(found.terminations, store.terminations[steps].any(-1))
    rewards = jnp.sum(jnp.asarray(0.9 ** np.arange(chunk), jnp.float32) * store.rewards[steps], -1)
    if chunk == 1:
        np.testing.assert_array_equal(found.rewards, rewards)
    np.testing.assert_allclose(found.rewards, rewards, rtol=1e-6)
    step = draws.prompt_step[:, None] + np.arange(4)
    mask = step < files.lengths[draws.prompt_episode][:, None]
    at = draws.prompt_episode[:, None], np.where(mask, step, 0)
    np.testing.assert_array_equal(found.prompt.mask, mask)
    for name in ("observations", "actions", "rewards"):
        there = np.asarray(getattr(store, name)[at])
        there = np.where(mask if there.ndim == 2 else mask[..., None], there, 0)
        np.testing.assert_array_equal(getattr(found.prompt, name), there)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32", "bool", "int32"}
    keys = jax.random.split(jax.random.key(0), 300)
    expected = jax.eval_shape(lambda keys: sample_batch(store, keys, sizes), keys)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def test_starts_of_chunks_are_uniform(write_tagged_tasks, tmp_path):
    """Where the prompt is the episode of 3 steps, chunks of 3 start at 0, 1 or 2 of the episode of 5, alike."""
    manifest = write_tagged_tasks([[3, 5]])
    files = open_episode_files(require_split(manifest, "train"), tmp_path, progress=False)
    draws = make_draw(files, BatchSizes(2000, 4, 2, chunk=3), seed=0)(0)
    long = draws.step[draws.prompt_episode == 0]
    np.testing.assert_allclose(np.bincount(long.ravel(), minlength=3) / long.size, [1 / 3] * 3, atol=0.03)
    assert (draws.step[draws.prompt_episode == 1] == 0).all()


def test_transitions_carry_the_weight_of_their_episode(files):
    weights = np.linspace(0.1, 2.0, 9, dtype=np.float32)
    batch = read_batch(dataclasses.replace(files, weights=weights), MANY, make_draw(files, MANY, seed=0)(0))
    episode, _ = origin(batch.observations)
    np.testing.assert_array_equal(batch.weights, weights[episode])


def test_a_stream_gives_the_batches_of_all_updates_in_order(files):
    draw = make_draw(files, FEW, seed=5)
    with BatchStream(files, FEW, seed=5, threads=3, ahead=6) as stream:
        taken = [stream.take(2), stream.take(30), stream.take(1)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *taken)
    for update in range(33):
        assert_same(jax.tree.map(lambda x, u=update: x[u], joined), read_batch(files, FEW, draw(update)))
    assert not np.array_equal(joined.observations[0], joined.observations[1])
    with BatchStream(files, FEW, seed=6) as other:
        assert not np.array_equal(other.take(1).observations, taken[0].observations[:1])


def test_room_is_filled_with_zeros(files):
    with BatchStream(files, FEW, seed=5) as stream:
        padded = stream.take(2, room=5)
        stream.set_state({"next_update": 0})
        plain = stream.take(2)
    assert_same(jax.tree.map(lambda x: x[:2], padded), plain)
    assert padded.prompt.mask.shape == (5, 4, 4) and not any(leaf[2:].any() for leaf in jax.tree.leaves(padded))


def test_a_saved_state_goes_on_with_the_same_batches(files):
    with BatchStream(files, FEW, seed=5) as stream, BatchStream(files, FEW, seed=5) as resumed:
        stream.take(7)
        saved = json.dumps(stream.get_state())
        expected = stream.take(4)
        resumed.take(1)
        resumed.set_state(json.loads(saved))
        assert_same(resumed.take(4), expected)
        assert resumed.get_state() == stream.get_state() == {"next_update": 11}


def test_hosts_share_the_groups_of_one_batch(files):
    with (
        BatchStream(files, FEW, seed=5) as whole,
        BatchStream(files, FEW, seed=5, process=(0, 2)) as first,
        BatchStream(files, FEW, seed=5, process=(1, 2)) as second,
    ):
        parts = first.take(9), second.take(9)
        assert parts[0].observations.shape[:2] == (9, 2)
        assert_same(jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), *parts), whole.take(9))
    with pytest.raises(UserError, match=r"data.groups: 4 groups cannot be shared evenly by 3 processes"):
        BatchStream(files, FEW, seed=5, process=(0, 3))


def test_a_file_that_is_cut_short_ends_the_stream_in_words(manifest, tmp_path):
    files = open_episode_files(require_split(manifest, "train"), tmp_path, progress=False)
    with BatchStream(files, FEW, seed=0, ahead=1, threads=1) as stream:
        stream.take(1)
        with open(files.folder / STEPS_FILE, "r+b") as file:
            file.truncate(16)
        with pytest.raises(UserError, match=r"the episodes there are damaged .* will be written again"):
            stream.take(20)


MEMORY_SCRIPT = """
import sys
from pathlib import Path

import numpy as np

from llmdpd_jax.bench.machine import peak_memory
from llmdpd_jax.data.episode_files import open_episode_files
from llmdpd_jax.data.sampler import BatchSizes
from llmdpd_jax.data.streaming import BatchStream
from llmdpd_jax.tasks.manifest import TaskEntry, TaskSplit

path, cache, tasks = sys.argv[1:]
split = TaskSplit("train", tuple(TaskEntry(str(i), "train", path) for i in range(int(tasks))), "test")
sizes = BatchSizes(groups=64, group_size=4, prompt_length=20)
open_episode_files(split, Path(cache) / "warm", progress=False)
marks = [peak_memory()]
files = open_episode_files(split, Path(cache) / "cold", progress=False)
marks.append(peak_memory())
with BatchStream(files, sizes, seed=0) as stream:
    for calls in (5, 95):
        for _ in range(calls):
            stream.take(20)
        marks.append(peak_memory())
print(sum(file.stat().st_size for file in files.folder.iterdir()), *marks)
"""


@pytest.mark.slow
def test_host_memory_does_not_grow_with_the_data_or_the_stream(tmp_path, subprocess_environment):
    """The peak after 100 and 2,000 updates from 16 MB and from 330 MB, with the copying of the data before it."""
    rng, steps, peaks = np.random.default_rng(0), 50_000, {}
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for name, size in (("observations", 60), ("next_observations", 60), ("actions", 20)):
            file[name] = rng.standard_normal((steps, size), np.float32)
        file["rewards"], file["terminals"] = np.zeros(steps, np.float32), np.zeros(steps, bool)
        file["timeouts"] = np.arange(steps) % 500 == 499
    for tasks in ("1", "20"):
        command = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path / "log.hdf5"), str(tmp_path / tasks), tasks]
        done = subprocess.run(command, env=subprocess_environment, capture_output=True, text=True, check=True)
        size, *peaks[tasks] = (int(number) / 1e6 for number in done.stdout.split())
        print(f"{size:.0f} MB of data: peak {', '.join(f'{peak:.0f}' for peak in peaks[tasks])} MB")
    assert size > 320
    written, copied, begun, ended = peaks["20"]
    # Threads take a while until they have all the memory that they ever take.
    assert copied - written < 15 and ended - begun < 40 and ended - peaks["1"][-1] < 20
