"""An LLM that is tuned with the policy: what is trained, what is not, and that acting reads as training did."""

import csv
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax import load_policy
from llmdpd_jax.cli.main import main
from llmdpd_jax.models.llm.encoder import TextEncoder, encoder_settings
from llmdpd_jax.models.llm.tuning import tuned_prompt
from llmdpd_jax.prompts.table import sample_text
from llmdpd_jax.tasks.manifest import load_manifest, require_split
from llmdpd_jax.training import checkpoint, loop, preparation

pytestmark = pytest.mark.slow  # programs of their own are compiled

TUNED = {"text__lora_rank": 2, "text__soft_tokens": 3, "optimiser__llm_learning_rate": 0.05}


@pytest.fixture(scope="module")
def tuned_run(made_world):
    return made_world.folder / "tuned"


@pytest.fixture
def run(world, tuned_run):
    """A finished run with adapters and soft tokens."""
    assert main(["train", *world.config(**TUNED), f"--out={tuned_run}"]) == 0
    return tuned_run


@pytest.fixture
def read(world, run):
    """The checkpoint, the train descriptions as training reads them (frozen, tuned), the LLM, what is trained first."""
    loaded = checkpoint.load(run)
    encoder = TextEncoder(encoder_settings(loaded.config.text))
    tasks = require_split(load_manifest(world.manifest), "train").tasks
    frozen, units = preparation.read_descriptions(encoder, tasks)
    return loaded, frozen, *preparation.tune_llm(loaded.config, encoder, tasks, frozen, units, jax.random.key(0))


def test_fresh_adapters_change_nothing(read):
    _, frozen, texts, llm, tuning = read
    prompts = [sample_text(table, jax.random.split(jax.random.key(1), 5), jnp.arange(5)) for table in (frozen, texts)]
    states = tuned_prompt(llm, {"lora": tuning["lora"]}, prompts[1]).states
    np.testing.assert_allclose(states, prompts[0].states, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(states == 0, ~np.broadcast_to(prompts[0].mask[..., None], states.shape))
    # Soft tokens are new to the LLM from the start.
    assert np.abs(tuned_prompt(llm, tuning, prompts[1]).states - states).max() > 0.1


def test_the_gradient_reaches_adapters_and_soft_tokens(read):
    _, _, texts, llm, tuning = read
    prompt = sample_text(texts, jax.random.split(jax.random.key(1), 5), jnp.arange(5))
    grads = jax.grad(lambda tuning: jnp.sum(tuned_prompt(llm, tuning, prompt).states[:, 0] ** 2))(tuning)
    step = 1e-3
    for name in ("prefix", "lora"):
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads[name])))
        assert norm > 0.0
        moved = [
            tuning | {name: jax.tree.map(lambda p, g, s=s / norm: p + s * g, tuning[name], grads[name])}
            for s in (step, -step)
        ]
        ahead, behind = (float(jnp.sum(tuned_prompt(llm, t, prompt).states[:, 0] ** 2)) for t in moved)
        assert (ahead - behind) / (2 * step) == pytest.approx(norm, rel=0.05)


def test_training_moves_what_is_trained_of_the_llm(read):
    loaded, *_, tuning = read
    trained = loaded.state.params["llm"]
    assert jax.tree.structure(trained) == jax.tree.structure(tuning) == jax.tree.structure(loaded.state.ema["llm"])
    assert trained["prefix"].shape == (3, 32)
    # Both adapters of queries and values: the outer ones started at zero.
    outer = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained) if path[-1].key == "b"]
    assert len(outer) == 2 and all(np.abs(leaf).max() > 1e-3 for leaf in outer)


def test_acting_reads_as_training_did(world, run, read):
    """A description through the policy (cached, encoded in batches) and through the update's own LLM call."""
    loaded, _, texts, llm, _ = read
    prompt = sample_text(texts, jax.random.split(jax.random.key(1), 2), jnp.arange(2))
    expected = tuned_prompt(llm, loaded.state.ema["llm"], prompt)
    policy = load_policy(run)
    told = [task.descriptions for task in require_split(load_manifest(world.manifest), "train").tasks[:2]]
    for i, descriptions in enumerate(told):
        found = [policy.read_descriptions([d]) for d in descriptions]
        length = int(expected.mask[i].sum())
        same = [
            f.states.shape[1] == length and np.allclose(f.states[0], expected.states[i, :length], rtol=1e-3, atol=1e-4)
            for f in found
        ]
        assert sum(same) == 1
    assert policy.text_encoder.identity != loaded.metadata["text_encoder"]  # or the cache would mix them up


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(world, run, tmp_path, monkeypatch):
    """The run ends with the same parameters when it is taken up at update 4, and evaluates."""
    parts = tmp_path / "parts"
    monkeypatch.setattr(loop, "run_updates", _first_updates(loop.run_updates, 4))
    assert main(["train", *world.config(**TUNED), f"--out={parts}"]) == 0
    assert checkpoint.find(parts)[1] == 4
    monkeypatch.undo()
    assert main(["train", *world.config(**TUNED), f"--out={parts}"]) == 0
    states = [checkpoint.load(one, optimiser=True).state for one in (run, parts)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_an_llm_divided_among_devices_is_tuned_as_on_one(world, run, tmp_path, eight_devices):
    script = """
import sys
import jax
from llmdpd_jax.cli.main import main
from llmdpd_jax.models.llm import encoder
from llmdpd_jax.training import loop
assert jax.local_device_count() == 8
encoder._too_large_for_copies = lambda size, device: True
calls = []
def make(*arguments):
    calls.append(make_train_call(*arguments))
    return calls[-1]
make_train_call, loop.make_train_call = loop.make_train_call, make
code = main(sys.argv[1:])
assert calls[0]._cache_size() == 1, calls[0]._cache_size()
sys.exit(code)
"""
    environment = eight_devices | world.environment()
    eight = tmp_path / "eight"
    arguments = ["train", *world.config(**TUNED), f"--out={eight}"]
    subprocess.run([sys.executable, "-c", script, *arguments], env=environment, check=True)
    logs = [list(csv.DictReader((one / "metrics.csv").open())) for one in (run, eight)]
    for name in logs[0][0]:  # means of the first two updates; later ones amplify rounding, for Adam's steps are signs
        assert float(logs[0][0][name]) == pytest.approx(float(logs[1][0][name]), rel=1e-4), name
    # The checkpoint that eight devices wrote is read on one.
    params = [checkpoint.load(one).state.params["llm"]["prefix"] for one in (run, eight)]
    np.testing.assert_allclose(*params, atol=0.02)


def _first_updates(run_updates, steps):
    def some(call, state, settings, *others):
        few = settings.copy_and_resolve_references()
        few.steps = steps
        return run_updates(call, state, few, *others)

    return some


def test_evaluation_runs(world, run):
    assert main(["evaluate", str(run)]) == 0


def test_there_must_be_an_llm_to_tune(world, tmp_path, capsys):
    assert main(["train", *world.config(text__lora_rank=2, model__use_llm=False), f"--out={tmp_path / 'run'}"]) == 2
    assert "text.lora_rank" in capsys.readouterr().err
