"""Every family of language models without reference weights: padding, windows, soft prompts, adapters, placement."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_llama import tiny_config

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.checkpoint import tree_shapes
from llmdpd_jax.models.llm.decoder import VARIANTS
from llmdpd_jax.models.llm.generation import generate
from llmdpd_jax.models.llm.network import hidden_states, random_lora

FAMILIES = ("bert", *VARIANTS)
TOKENS = np.random.default_rng(0).integers(0, 300, (3, 9)).astype(np.int32)


def lively(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict:
    """A parameter tree with noise on all leaves: scales of one and biases and adapters of zero would hide errors."""
    rng = np.random.default_rng(seed)
    noise = {path: jnp.asarray(rng.normal(0, 0.35, shape), jnp.float32) for path, shape in shapes.items()}
    return unflatten_dict({p: x + 1 if p.endswith("scale") else x for p, x in noise.items()}, sep="/")


def model(family: str, **changes):
    config = replace(tiny_config(family), **changes)
    return config, lively(tree_shapes(config))


def adapters(config) -> dict:
    shapes = jax.eval_shape(lambda: random_lora(config, jax.random.key(0)))
    return lively({path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_changes_nothing(family):
    config, params = model(family)
    expected = np.asarray(hidden_states(config, params, TOKENS))
    assert np.isfinite(expected).all()
    noise = np.random.default_rng(1).integers(0, 300, (3, 4)).astype(np.int32)
    real, padded = np.ones_like(TOKENS, bool), np.zeros_like(noise, bool)
    for parts in (((TOKENS, real), (noise, padded)), ((noise, padded), (TOKENS, real))):
        tokens, mask = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
        states = np.asarray(hidden_states(config, params, tokens, mask))
        assert np.isfinite(states).all()
        np.testing.assert_allclose(states[mask].reshape(expected.shape), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prompt_length", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_places_that_are_kept_have_the_states_that_they_have_among_all(family, prompt_length):
    """Rows of 9, 4, 7 and 0 tokens, in one group and in two; with adapters, and with a soft prompt."""
    config, params = model(family, lora_rank=2)
    prefix = jax.random.normal(jax.random.key(0), (prompt_length, config.width)) if prompt_length else None
    tokens = np.concatenate([TOKENS, TOKENS[:1]])
    mask = np.arange(9) < np.array([9, 4, 7, 0])[:, None]
    run = partial(hidden_states, config, params, tokens, mask, adapters(config), prefix)
    expected = np.asarray(run())
    for groups in (1, 2):
        real = [np.flatnonzero(group) for group in mask.reshape(groups, -1)]
        kept = np.stack([np.pad(places, (0, 22 - len(places))) for places in real]).astype(np.int32)
        states = run(kept=kept)
        assert states.shape == (groups, 22, config.width) and np.isfinite(states).all()
        found = np.concatenate([row[: len(places)] for row, places in zip(states, real, strict=True)])
        np.testing.assert_allclose(found, expected[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_bert_reads_ahead(family):
    config, params = model(family)
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 300
    difference = np.abs(hidden_states(config, params, TOKENS) - hidden_states(config, params, changed)).max((0, 2))
    assert (difference[:5] > 1e-4).all() == (family == "bert")
    if family != "bert":
        assert (difference[:5] == 0).all()
    assert (difference[5:] > 1e-4).all()


@pytest.mark.parametrize("family", VARIANTS)
def test_generation_equals_reading_all_again_for_every_token(family):
    """Rows of different lengths, padded on the left; longer than the window of local layers."""
    config, params = model(family)
    head = params["embed"]["embedding"]
    rows = [TOKENS[0, :6], TOKENS[1, :3]]
    tokens, mask = np.zeros((2, 6), np.int32), np.zeros((2, 6), bool)
    for row, filled, one in zip(tokens, mask, rows, strict=True):
        row[-len(one) :], filled[-len(one) :] = one, True
    said = np.asarray(generate(config, params, head, tokens, mask, 7))
    for i, one in enumerate(rows):
        for _ in range(7):
            last = np.asarray(hidden_states(config, params, one[None]))[0, -1]
            one = np.append(one, np.argmax(head @ last)).astype(np.int32)
        np.testing.assert_array_equal(said[i], one[len(rows[i]) :])
    assert len({tuple(row) for row in said}) == 2


def test_a_local_layer_sees_its_window_and_no_more():
    local_only = (True, True)
    config, params = model("gemma3_text", num_layers=2, local_layers=local_only, window=3)
    changed = TOKENS.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 300
    difference = np.abs(hidden_states(config, params, TOKENS) - hidden_states(config, params, changed)).max((0, 2))
    # Two layers, each of which looks back two tokens beside its own.
    assert (difference[:5] > 0).all()
    assert (difference[5:] == 0).all()
    mixed = replace(config, local_layers=(True, False))
    assert np.abs(hidden_states(mixed, params, TOKENS) - hidden_states(mixed, params, changed)).max((0, 2))[8] > 0


@pytest.mark.parametrize("family", ["bert", "llama", "gemma3_text"])
def test_a_soft_prompt_stands_where_embedded_tokens_do(family):
    """Embeddings of tokens, given as a soft prompt, act as the tokens themselves, with padding on either side."""
    config, params = model(family)
    table = params["embed"]["embedding"]
    prompt = TOKENS[0, :4]
    prefix = table[prompt] * (config.width**0.5 if family == "gemma3_text" else 1.0)
    whole = np.concatenate([np.broadcast_to(prompt, (3, 4)), TOKENS], axis=1)
    expected = np.asarray(hidden_states(config, params, whole))[:, 4:]
    np.testing.assert_allclose(hidden_states(config, params, TOKENS, prefix=prefix), expected, rtol=1e-3, atol=1e-5)
    for side in (lambda *parts: parts, lambda *parts: parts[::-1]):
        tokens = np.concatenate(side(TOKENS, TOKENS[:, :3]), axis=1)
        mask = np.concatenate(side(np.ones((3, 9), bool), np.zeros((3, 3), bool)), axis=1)
        states = np.asarray(hidden_states(config, params, tokens, mask, prefix=prefix))
        assert states.shape == (3, 12, config.width)
        np.testing.assert_allclose(states[mask].reshape(expected.shape), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "olmo", "qwen2"])
def test_adapters_act_as_the_sum_of_the_matrices(family):
    config, params = model(family, lora_rank=2, lora_alpha=6.0)
    plain, lora = replace(config, lora_rank=0), adapters(config)
    assert set(lora["layers"]) == {"query", "value"}
    folded = {name: dict(part) for name, part in params["layers"].items()}
    for name, pair in lora["layers"].items():
        folded[name]["kernel"] = folded[name]["kernel"] + 3.0 * pair["a"] @ pair["b"]  # alpha / rank
    expected = hidden_states(plain, params | {"layers": folded}, TOKENS)
    assert np.abs(expected - hidden_states(plain, params, TOKENS)).max() > 0.1
    np.testing.assert_allclose(hidden_states(config, params, TOKENS, lora=lora), expected, rtol=1e-3, atol=1e-4)


def test_new_adapters_change_nothing():
    config, params = model("qwen2", lora_rank=4)
    lora = random_lora(config, jax.random.key(1))
    a = np.asarray(lora["layers"]["query"]["a"])
    assert a.shape == (config.num_layers, 32, 4)
    assert a.std() == pytest.approx(32**-0.5, rel=0.15)
    assert tree_shapes(config) == tree_shapes(replace(config, lora_rank=0))
    without = hidden_states(replace(config, lora_rank=0), params, TOKENS)
    np.testing.assert_allclose(hidden_states(config, params, TOKENS, lora=lora), without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [pytest.param("bert", marks=pytest.mark.slow), "gemma3_text"])
def test_rematerialised_gradients_are_the_same(family):
    """Of adapters and soft prompt; and both learn."""
    config, params = model(family, lora_rank=2)
    lora = adapters(config)
    prefix = 0.3 * jax.random.normal(jax.random.key(2), (2, config.width))

    def loss(trained, config):
        return jnp.square(hidden_states(config, params, TOKENS, None, *trained)).mean()

    kept, again = (jax.grad(loss)((lora, prefix), replace(config, remat=remat)) for remat in (False, True))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(kept))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), kept, again)
    assert "remat" in str(jax.make_jaxpr(lambda t: loss(t, replace(config, remat=True)))((lora, prefix)))


@pytest.mark.parametrize("family", ["bert", "olmo2", "gemma3_text"])
def test_bfloat16_is_close(family):
    config, params = model(family)
    exact = hidden_states(config, params, TOKENS)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rounded = hidden_states(replace(config, dtype="bfloat16"), half, TOKENS)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.05


def test_what_does_not_fit_together_is_refused():
    config, params = model("llama")
    with pytest.raises(UserError, match="129 with the soft prompt, the model reads at most 128"):
        hidden_states(config, params, np.zeros((1, 127), np.int32), prefix=jnp.zeros((2, 32)))
    with pytest.raises(UserError, match="adapters given, the config's rank is 0"):
        hidden_states(config, params, TOKENS, lora={})
    with pytest.raises(UserError, match="adapters missing, the config's rank is 4"):
        hidden_states(replace(config, lora_rank=4), params, TOKENS)


PLACEMENT = """
import sys
import jax, numpy as np
from dataclasses import replace
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.generation import generate
from llmdpd_jax.models.llm.network import hidden_states
from llmdpd_jax.models.llm.safetensors import open_safetensors

assert jax.device_count() == 8
checkpoint = open_safetensors(sys.argv[1])
config = checkpoint.config
single = load_params(checkpoint, config)
mesh = Mesh(np.reshape(jax.devices(), (2, 4)), ("data", "model"))
columns = NamedSharding(mesh, P(None, None, "model"))
shardings = jax.tree.map(lambda x: columns if x.ndim == 3 else NamedSharding(mesh, P()), single)

sizes = []
def read(name, index):
    part = checkpoint.read(name, index)
    sizes.append(part.size)
    return part

spied = replace(checkpoint, read=read)
spread = load_params(spied, config, shardings)
gate = spread["layers"]["gate"]["kernel"]
assert gate.sharding == columns and gate.addressable_shards[0].data.shape == (3, 32, 12), gate.sharding
# Every number is read once, however many devices hold it, and no read is larger than one device's part.
assert sum(sizes) == sum(x.size for x in jax.tree.leaves(single)), (sum(sizes))
assert max(sizes) == 320 * 32
jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), single, spread)
everywhere = load_params(checkpoint, config, NamedSharding(mesh, P()))
assert all(x.is_fully_replicated and len(x.devices()) == 8 for x in jax.tree.leaves(everywhere))
tokens = np.arange(24).reshape(2, 12) * 7 % 300
expected = hidden_states(config, single, tokens)
np.testing.assert_allclose(hidden_states(config, spread, tokens), expected, rtol=1e-4, atol=1e-5)
"""


def test_parameters_are_read_into_their_places(llama_folder, eight_devices):
    command = [sys.executable, "-c", PLACEMENT, str(llama_folder)]
    result = subprocess.run(command, capture_output=True, text=True, env=eight_devices)
    assert result.returncode == 0, result.stderr
