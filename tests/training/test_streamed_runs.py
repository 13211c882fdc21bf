"""A run whose batches are streamed from files is a run like any other."""

import shutil

import jax
import numpy as np
import pytest

from llmdpd_jax.cli.main import main
from llmdpd_jax.training import checkpoint, loop
from llmdpd_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow  # programs of their own are compiled

STREAMED = {"data__streaming": True, "data__stream_updates": 3}


@pytest.fixture
def run(world):
    out = world.folder / "streamed"
    assert main(["train", *world.config(**STREAMED), f"--out={out}"]) == 0
    return out


def states(*runs):
    return [checkpoint.load(run, optimiser=True).state for run in runs]


def test_it_learns_from_other_batches_of_the_same_data(run, tiny_run):
    found, expected = (checkpoint.load(one) for one in (run, tiny_run))
    for mine, theirs in zip(*map(jax.tree.leaves, (found.statistics, expected.statistics)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    losses = [read_metrics(one / "metrics.csv")["loss/cloning"] for one in (run, tiny_run)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.5)
    assert not np.array_equal(*losses)


def test_resumed_is_uninterrupted(world, run, tmp_path):
    """To the same bits: the batches of an update follow from its number."""
    parts = shutil.copytree(run, tmp_path / "parts")
    shutil.rmtree(parts / "checkpoints" / "6")
    assert main(["train", f"--resume={parts}"]) == 0
    jax.tree.map(np.testing.assert_array_equal, *states(run, parts))


def test_calls_of_any_length_are_one_program_and_cover_the_batches_in_order(world, run, tmp_path, monkeypatch):
    """Calls of 5 and 1 updates from pieces of at most 3: the same updates as calls of 2."""
    made, sizes = [], []

    def make_train_call(*arguments):
        call = make(*arguments)
        made.append(call)

        def counted(*inputs):
            sizes.append(int(inputs[-1]))
            return call(*inputs)

        return counted

    make = loop.make_train_call
    monkeypatch.setattr(loop, "make_train_call", make_train_call)
    other = tmp_path / "other"
    settings = STREAMED | {"train__log_every": 5, "train__checkpoint_every": 100}
    assert main(["train", *world.config(**settings), f"--out={other}"]) == 0
    assert sizes == [3, 2, 1] and made[0]._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, *states(run, other))
    whole = read_metrics(run / "metrics.csv")["loss/critic"]
    parts = read_metrics(other / "metrics.csv")["loss/critic"]
    assert (5 * parts[0] + parts[1]) / 6 == pytest.approx(whole.mean(), rel=1e-5)


def test_what_does_not_go_with_streaming(world, tmp_path, capsys):
    out = f"--out={tmp_path / 'run'}"
    assert main(["train", *world.config(data__parts=2, **STREAMED), out]) == 2
    assert "data.parts" in capsys.readouterr().err
    assert main(["train", *world.config(train__form="pmap", **STREAMED), out]) == 2
    assert "train.form" in capsys.readouterr().err
