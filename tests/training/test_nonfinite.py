"""Updates that are not finite: the first is named with its batch, or they are left out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import make_store

from llmdpd_jax.agents.diffusion_ql import TrainState
from llmdpd_jax.cli.main import main
from llmdpd_jax.data.sampler import BatchSizes, sample_batch
from llmdpd_jax.data.store import divide_store
from llmdpd_jax.tasks.manifest import load_manifest
from llmdpd_jax.training import checkpoint, loop, step
from llmdpd_jax.training.metrics import read_metrics
from llmdpd_jax.training.nonfinite import BATCH_FILE, read_store, redraw
from llmdpd_jax.training.preparation import run_keys
from llmdpd_jax.training.step import (
    FIRST_BAD,
    SKIPPED,
    batch_keys,
    batch_sizes,
    draw_batch,
    join_metrics,
    make_train_call,
)

SEED = 2  # of a run that holds some reward in its fifth batch alone
SIZES = BatchSizes(groups=6, group_size=5, prompt_length=4, chunk=2, discount=0.9)


@pytest.fixture
def toy_call(monkeypatch):
    """`toy_call(skip)`: the compiled call of an update that adds 1, and is not finite where the source says so."""

    def update(state, number, source, statistics, texts, llm, key):
        bad = jnp.any(source == 10 * key + state.step)
        grad = jnp.where(bad, jnp.nan, 1.0)
        metrics = {"loss": jnp.where(bad, jnp.inf, state.step.astype(float)), "after": state.params["w"] * 1.0}
        return state.replace(step=state.step + 1, params={"w": state.params["w"] + grad}), metrics

    monkeypatch.setattr(step, "make_update", lambda *arguments: update)
    return lambda skip: make_train_call(None, None, skip=skip)


def toy_state(shape=()):
    return TrainState(jnp.full(shape, 3, jnp.int32), {"w": jnp.zeros(shape)}, {}, {}, ())


def test_the_first_bad_update_is_told(toy_call):
    call, key = toy_call(False), jnp.float32(0)
    _, good = call(toy_state(), jnp.array([99.0]), None, None, None, key, np.int32(4))
    assert good[FIRST_BAD] == -1 and good["loss"] == pytest.approx((3 + 4 + 5 + 6) / 4) and SKIPPED not in good
    state, metrics = call(toy_state(), jnp.array([7.0, 5.0]), None, None, None, key, np.int32(6))
    assert metrics[FIRST_BAD] == 5 and state.step == 9 and np.isnan(state.params["w"])
    # What was finite at the first bad update is told apart from what was not.
    assert metrics["loss"] == np.inf and np.isfinite(metrics["after"])
    assert call._cache_size() == 2  # lengths of the source; the count compiles nothing


def test_of_runs_side_by_side_each_has_its_own(toy_call):
    call, keys = toy_call(False), jnp.array([0.0, 1.0, 2.0])
    _, metrics = call(toy_state((3,)), jnp.array([14.0, 26.0]), None, None, None, keys, np.int32(5))
    np.testing.assert_array_equal(metrics[FIRST_BAD], [-1, 4, 6])
    np.testing.assert_array_equal(np.isfinite(metrics["loss"]), [True, False, False])


def test_a_skipped_update_leaves_all_but_the_step(toy_call):
    call = toy_call(True)
    state, metrics = call(toy_state(), jnp.array([5.0, 7.0]), None, None, None, jnp.float32(0), np.int32(6))
    assert state.step == 9 and state.params["w"] == 4
    assert metrics[FIRST_BAD] == 5 and metrics[SKIPPED] == 2
    assert metrics["loss"] == pytest.approx((3 + 4 + 6 + 8) / 4), "the mean is of those that were taken"
    every = jnp.arange(3.0, 9.0)
    state, metrics = call(toy_state(), every, None, None, None, jnp.float32(0), np.int32(6))
    assert state.params["w"] == 0 and metrics[SKIPPED] == 6


def test_calls_are_joined_as_one(toy_call):
    for skip in (False, True):
        call, bad, key = toy_call(skip), jnp.array([8.0]), jnp.float32(0)
        _, whole = call(toy_state(), bad, None, None, None, key, np.int32(7))
        state, parts = toy_state(), []
        for count in (4, 2, 1):
            state, part = call(state, bad, None, None, None, key, np.int32(count))
            parts.append(part)
        joined = join_metrics(parts, [4, 2, 1])
        assert set(joined) == set(whole) and joined[FIRST_BAD] == whole[FIRST_BAD] == 8
        if skip:
            for name, value in whole.items():
                np.testing.assert_allclose(joined[name], value, rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_batch_is_drawn_again(parts):
    """From the numbers of the store on the host, whatever parts it was divided into: the batch itself."""
    store, key = make_store(), jax.random.key(5)
    drawn = draw_batch(divide_store(store, parts), SIZES, 0, batch_keys(key, 17, jnp.arange(6))[0])
    draws = redraw(store, parts, SIZES, key, 17)
    jax.tree.map(np.testing.assert_allclose, read_store(store, SIZES, draws), jax.device_get(drawn))
    assert np.all(store.task_id[draws.episode] == draws.task_id[:, None])
    other = redraw(store, parts, SIZES, key, 18)
    assert not np.array_equal(draws.episode, other.episode)


@pytest.fixture
def spoilt(monkeypatch):
    """A logged reward is NaN, which the check of the data has not seen: one that of six batches the fifth alone holds.

    Gives a list that will hold `(episode, step)`, once a run was given its data.
    """
    prepare, seen = loop.prepare, []

    def holds(given, update: int) -> bool:
        sizes = batch_sizes(given.config)
        keys = batch_keys(run_keys(SEED)[1], update, jnp.arange(sizes.groups))[0]
        batch = sample_batch(given.data.store, keys, sizes)
        return bool(np.isnan(batch.rewards).any() or np.isnan(batch.prompt.rewards).any())

    def spoil(config):
        given = prepare(config)
        draws = redraw(given.data.store, 1, batch_sizes(given.config), run_keys(SEED)[1], 4)
        for place in zip(draws.episode.ravel(), draws.step.ravel(), strict=True):
            value, given.data.store.rewards[place] = given.data.store.rewards[place], np.nan
            if [holds(given, update) for update in range(6)] == [False] * 4 + [True, False]:
                seen.append(tuple(map(int, place)))
                return given
            given.data.store.rewards[place] = value
        raise AssertionError("no such reward: another SEED has one")

    monkeypatch.setattr(loop, "prepare", spoil)
    return seen


@pytest.mark.slow  # a program of its own
def test_the_update_its_batch_and_what_is_intact_are_named(world, tmp_path, spoilt, capsys):
    run = tmp_path / "run"
    assert main(["train", *world.config(seed=SEED), f"--out={run}"]) == 2
    message = capsys.readouterr().err
    episode, at = spoilt[0]
    task = load_manifest(world.manifest).tasks[episode // 4]
    assert f"{run}: " in message and "loss/critic" in message and "not finite in update 5; its batch holds" in message
    assert f"task {task.name!r} (Minari data set {task.dataset!r}) episode {episode % 4} step {at}" in message
    assert "The checkpoint of update 4 is intact" in message and "Traceback" not in message
    assert checkpoint.find(run)[1] == 4
    written = json.loads((run / BATCH_FILE).read_text())
    assert written["update"] == 5 and len(written["groups"]) == 4
    assert any(one["task"] == task.name and [episode % 4, at] in one["transitions"] for one in written["groups"])


@pytest.mark.slow  # a program of its own
def test_a_run_that_skips_goes_on_without_the_update(world, tmp_path, spoilt):
    run = tmp_path / "run"
    assert main(["train", *world.config(seed=SEED, train__on_nonfinite="skip"), f"--out={run}"]) == 0
    metrics = read_metrics(run / "metrics.csv")
    np.testing.assert_array_equal(metrics["skipped"], [0, 0, 1])
    assert all(np.isfinite(values).all() for values in metrics.values())
    state = checkpoint.load(run, optimiser=True).state
    assert state.step == 6 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert counts and all(count == 5 for count in counts), "the optimiser has seen five updates"
