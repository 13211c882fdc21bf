"""Descriptions to prompts: what is padded, repeated, cut and laid on tokens."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_gguf import random_tensors
from tiny_llama import (
    block_outputs,
    hf_config,
    tiny_config,
    tiny_tensors,
    tiny_tokenizer,
    tiny_word_pieces,
    write_folder,
)

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm import encoder as module
from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.decoder import Rope, rotate, rotation
from llmdpd_jax.models.llm.encoder import TextEncoder, TextEncoderSettings, load_text_encoder
from llmdpd_jax.models.llm.network import hidden_states
from llmdpd_jax.models.llm.safetensors import open_safetensors

TEXTS = ["go to (0.31, -0.42)", "stay", "run forward with a speed of minus one point five metres per second, no faster"]


def make(folder, **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderSettings(source=str(folder), **{"layer": 2, "hide_numbers": False, **settings}))


def assert_close(states, expected):
    """Up to rounding, which differs between batches: relative error (L2) of the states of a text."""
    assert np.linalg.norm(states - expected) < 3e-5 * np.linalg.norm(expected)


@pytest.fixture(autouse=True)
def _cache(private_cache):
    """Hashes of test files do not go to the user's cache."""


def test_rotation_by_hand():
    x = jnp.ones((1, 3, 1, 4))
    rows = np.asarray(rotate(x, *rotation(Rope(100.0, (1.0, 4.0)), jnp.array([[0, 1, 5]]), 4)))[0, :, 0]
    for position, turned in zip((0, 1, 5), rows, strict=True):
        for pair, angle in enumerate((position * 1.0, position * 0.025)):  # 100^(-0/4) / 1, 100^(-2/4) / 4
            expected = [np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)]
            np.testing.assert_allclose(turned[[pair, pair + 2]], expected, rtol=1e-5)


def test_truncation_equals_the_layer_of_the_whole_model(llama_folder):
    checkpoint = open_safetensors(llama_folder)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 11))
    outputs = block_outputs(checkpoint, tokens)
    for layer in (1, 2):
        config = checkpoint.config.truncate(layer)
        states = hidden_states(config, load_params(checkpoint, config), tokens)
        np.testing.assert_allclose(states, outputs[layer - 1], rtol=1e-5, atol=1e-5)
    scale = checkpoint.read("norm.weight", (slice(None),))
    normed = outputs[2] / np.sqrt((outputs[2] ** 2).mean(-1, keepdims=True) + 1e-5) * scale
    states = hidden_states(checkpoint.config, load_params(checkpoint, checkpoint.config), tokens)
    np.testing.assert_allclose(states, normed, rtol=1e-4, atol=1e-5)


def test_a_prompt_does_not_depend_on_its_company(llama_folder):
    encoder = make(llama_folder)
    together = encoder.encode(TEXTS)
    assert together.states.shape == (3, together.mask.sum(1).max(), 32)
    for i, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        length = alone.mask.shape[1]
        assert together.mask[i].tolist() == [True] * length + [False] * (together.mask.shape[1] - length)
        assert_close(together.states[i, :length], alone.states[0])
        assert not together.states[i, length:].any()
        assert (together.number_index[i, length:] == -1).all()


@pytest.mark.optimised
@pytest.mark.parametrize("repeat", [True, False])
def test_states_are_those_of_the_last_copy(llama_folder, repeat):
    encoder = make(llama_folder, repeat=repeat)
    text = "7 m to the left"  # whose first token is one character
    tokenizer = open_safetensors(llama_folder).tokenizer
    own = tokenizer.encode(text).ids
    before = tokenizer.encode(text + "\n" if repeat else "\n").ids
    states = hidden_states(encoder.config, encoder.params, np.array([before + own]))
    prompt = encoder.encode([text])
    assert prompt.mask.shape == (1, len(own))
    expected = states[0, len(before) :]
    # States reach 25, so that rounding is no smaller in those near 0.
    assert np.linalg.norm(prompt.states[0] - expected) <= 1e-5 * np.linalg.norm(expected)


def test_only_the_repeated_text_is_read_whole_at_every_token(llama_folder):
    """The state of a first word changes with the last word only if the text was read before."""
    for repeat, changes in ((True, True), (False, False)):
        encoder = make(llama_folder, repeat=repeat)
        a, b = (encoder.encode([text]).states[0, 0] for text in ("go to the left", "go to the right"))
        assert (np.abs(a - b).max() > 1e-3) == changes


@pytest.mark.parametrize("family", ["olmo", "olmo2", "qwen2", "qwen3", "gemma3_text", "bert"])
def test_every_family_reads_descriptions(family, tmp_path):
    config = tiny_config(family)
    tokenizer = tiny_word_pieces() if family == "bert" else None
    folder = write_folder(tmp_path / "model", random_tensors(config), hf_config(config), tokenizer=tokenizer)
    encoder = make(folder)
    together = encoder.encode(TEXTS)
    assert np.isfinite(together.states).all()
    for i, text in enumerate(TEXTS):
        alone = encoder.encode([text]).states[0]
        assert_close(together.states[i, : len(alone)], alone)
    # Whatever comes last in the text, the first word's state knows of it.
    a, b = (encoder.encode([text]).states[0, 0] for text in ("go to the goal", "go to the go"))
    assert np.abs(a - b).max() > 1e-3


def test_bert_is_fed_once_between_its_own_tokens(tmp_path):
    config = tiny_config("bert")
    folder = write_folder(tmp_path / "model", random_tensors(config), hf_config(config), tokenizer=tiny_word_pieces())
    encoder = make(folder)
    encoding = open_safetensors(folder).tokenizer.encode("go to the goal")
    assert encoding.tokens == ["[CLS]", "go", "to", "the", "goal", "[SEP]"]
    states = hidden_states(encoder.config, encoder.params, np.array([encoding.ids]))
    prompt = encoder.encode(["go to the goal"])
    np.testing.assert_allclose(prompt.states[0], states[0, 1:-1], rtol=1e-4, atol=1e-5)
    once = make(folder, repeat=False).encode(["go to the goal"])
    np.testing.assert_array_equal(once.states, prompt.states)
    with pytest.raises(UserError, match="the model's tokenizer finds nothing to read in it"):
        encoder.encode(["\u0007"])


def spelled_numbers(encoder, text, number_index) -> list[str]:
    """For each number of a text, the characters that its tokens cover."""
    offsets = encoder._tokenize(text).offsets
    return [
        "".join(text[slice(*offsets[token])].strip() for token in np.flatnonzero(number_index == number))
        for number in range(number_index.max() + 1)
    ]


def test_numbers_lie_on_the_tokens_that_spell_them(llama_folder):
    encoder = make(llama_folder)
    prompt = encoder.encode(TEXTS)
    spelled = [spelled_numbers(encoder, text, row) for text, row in zip(TEXTS, prompt.number_index, strict=True)]
    assert spelled == [["0.31", "-0.42"], [], ["minusonepointfive"]]
    np.testing.assert_allclose(np.unique(prompt.numbers[0]), [-0.42, 0, 0.31], rtol=1e-6)
    np.testing.assert_allclose(np.unique(prompt.numbers[2]), [-1.5, 0])
    assert (prompt.numbers[prompt.number_index == -1] == 0).all()


def test_hidden_numbers_leave_states_that_do_not_depend_on_them(llama_folder):
    encoder = make(llama_folder, hide_numbers=True)
    prompt = encoder.encode(["go to x = 0.31 and y = -0.42", "go to x = minus seven and y = 5"])
    np.testing.assert_array_equal(prompt.states[0], prompt.states[1])
    for row, values in zip(prompt.numbers, ([0.31, -0.42], [-7, 5]), strict=True):
        np.testing.assert_allclose(row[row != 0], values)
    assert (prompt.number_index.max(axis=1) == 1).all()


def test_surrounding_white_space_does_not_matter(llama_folder):
    encoder = make(llama_folder)
    jax.tree.map(np.testing.assert_array_equal, encoder.encode([" stay \n"]), encoder.encode(["stay"]))


def test_few_shapes_are_compiled(llama_folder):
    encoder = make(llama_folder)
    before = hidden_states._cache_size()
    texts = [f"go to ({'9' * digits}, 0.{i})" for digits in range(1, 6) for i in range(20)]
    encoder.encode(texts)
    assert hidden_states._cache_size() - before <= 4  # of 6 batches
    texts = ["go" + " to" * (i % 20) + " 9" * (i * i % 19) for i in range(3000)]
    batches = list(encoder.batches(texts))
    assert len(batches) > 250
    assert len({(batch.tokens.shape, batch.kept.shape) for batch in batches}) <= 30
    assert sum(batch.kept.size for batch in batches) < 1.02 * sum(batch.mask.sum() for batch in batches)


def test_batches_are_filled_with_the_texts_that_fit(llama_folder):
    encoder = TextEncoder(TextEncoderSettings(source=str(llama_folder), layer=1), batch_tokens=90)
    least = len(encoder._tokenize("go a").tokens)
    texts = [f"go {word}" for word in "abcdefghijklmnopqrs"] + ["go to the goal at the left, and stay there"]
    batches = list(encoder.batches(texts))
    members = [i for batch in batches for share in batch.shares for i in share]
    assert sorted(members) == list(range(20)) and members[0] == 19
    for batch in batches:
        sizes = [len(item.tokens) for share in batch.shares for item in share.values()]
        assert sum(sizes) == batch.mask.sum() <= 90
        assert sum(sizes) > 90 - least or batch is batches[-1] or len(sizes) == len(batch.tokens)
        real = batch.tokens.ravel()[batch.kept.ravel()[: sum(sizes)]]
        np.testing.assert_array_equal(real, batch.tokens[batch.mask])


def test_few_texts_are_divided_among_all_devices(llama_folder):
    """Not read by the first device alone, and all in one batch."""
    encoder = TextEncoder(TextEncoderSettings(source=str(llama_folder), layer=1), batch_tokens=10**4)
    vars(encoder)["_mesh"] = SimpleNamespace(devices=np.array(jax.local_devices()[:1] * 4))
    (batch,) = encoder.batches([f"go {word}" for word in "abcdefghi"])
    counts = [len(share) for share in batch.shares]
    assert sum(counts) == 9 and max(counts) <= 4
    assert len(batch.kept) == 4 and len(batch.tokens) % 4 == 0


@pytest.mark.slow
def test_batches_are_divided_among_devices(llama_folder, tmp_path, eight_devices):
    """Eight devices give the numbers of one, for batches that fill them and for one that does not.

    So they do with the weights divided among them.
    """
    script = """
import sys
import jax, numpy as np
from llmdpd_jax.models.llm.encoder import TextEncoder, TextEncoderSettings
assert jax.local_device_count() == 8
texts = [f"go to {chr(97 + i)} " * (1 + i % 3) for i in range(21)]
for shard, file in ((None, "copies"), (True, "parts")):
    encoder = TextEncoder(TextEncoderSettings(source=sys.argv[1], layer=2), batch_tokens=64, shard=shard)
    leaves = jax.tree.leaves(encoder.params)
    assert all(leaf.sharding.num_devices == 8 for leaf in leaves)
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)
    assert held < 0.13 if shard else held == 1, held
    np.savez(f"{sys.argv[2]}/{file}.npz", **vars(encoder.encode(texts)))
"""
    command = [sys.executable, "-c", script, str(llama_folder), str(tmp_path)]
    subprocess.run(command, env=eight_devices, check=True)
    texts = [f"go to {chr(97 + i)} " * (1 + i % 3) for i in range(21)]
    one = vars(make(llama_folder, hide_numbers=True).encode(texts))
    for file in ("copies.npz", "parts.npz"):
        with np.load(tmp_path / file) as eight:
            assert sorted(eight) == sorted(one)
            for name in one:
                np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, atol=1e-4)  # states reach 35


def test_weights_are_divided_where_copies_would_be_too_large():
    def too_large(stats):
        return module._too_large_for_copies(2500, SimpleNamespace(memory_stats=lambda: stats))

    assert [too_large(stats) for stats in (None, {}, {"bytes_limit": 10_000}, {"bytes_limit": 9_999})] == [
        False,
        False,
        False,
        True,
    ]
    # Never the axis of layers, and of a matrix's two the larger that can be divided.
    assert module._divided((8, 16, 24), 8) == [None, None, "data"]
    assert module._divided((8, 16, 20), 8) == [None, "data", None]
    assert module._divided((48, 16, 20), 8) == [None, "data", None]  # layers are scanned, not divided
    assert module._divided((12,), 8) == [None]


def test_batches_fit_into_the_memory_of_an_accelerator(llama_folder):
    config = open_safetensors(llama_folder).config

    def batch(platform, stats):
        return module._batch_tokens(config, 16, SimpleNamespace(platform=platform, memory_stats=lambda: stats))

    assert batch("cpu", None) == 512
    assert batch("gpu", None) == 16384
    assert batch("gpu", {"bytes_limit": 10**11, "bytes_in_use": 10**9}) == 16384
    # 9 * 32 + 3 * 48 + 2 * 4 * 16 = 560 floats a token; half of 2240000 bytes hold 500 of them.
    assert batch("gpu", {"bytes_limit": 3240000, "bytes_in_use": 10**6}) == 500
    assert batch("gpu", {"bytes_limit": 100, "bytes_in_use": 100}) == 1


def test_what_the_llm_goes_on_to_say_is_read_with_the_description(llama_folder):
    """Four tokens, each the most likely after all before it; their states stand behind the description's own."""
    checkpoint = open_safetensors(llama_folder)
    params, whole = load_params(checkpoint, checkpoint.config), checkpoint.config
    head = params["embed"]["embedding"]
    encoder, plain = make(llama_folder, continuation=4), make(llama_folder)
    assert encoder.identity != plain.identity
    texts = TEXTS[:2]
    longer, own = encoder.encode(texts), plain.encode(texts)
    cue = checkpoint.tokenizer.encode(module.CUE, add_special_tokens=False).ids
    cut = whole.truncate(2)

    def read(config, params, tokens):  # padded, so that all lengths are compiled once
        return np.asarray(hidden_states(config, params, np.pad(tokens, (0, 128 - len(tokens)))[None]))[0]

    for i, text in enumerate(texts):
        before = [*checkpoint.tokenizer.encode(f"{text}\n{text}").ids, *cue]
        tokens = list(before)
        for _ in range(4):
            last = read(whole, params, tokens)[len(tokens) - 1]
            tokens.append(int(np.argmax(head @ last)))
        states = read(cut, encoder.params, tokens)[: len(tokens)]
        length = int(own.mask[i].sum())
        assert longer.mask[i].sum() == length + 4
        assert_close(longer.states[i, :length], own.states[i, :length])
        assert_close(longer.states[i, length : length + 4], states[len(before) :])
        np.testing.assert_array_equal(longer.number_index[i, :length], own.number_index[i, :length])
        assert (longer.number_index[i, length:] == -1).all()


def test_continuations_that_cannot_be(llama_folder):
    with pytest.raises(UserError, match=r"continuation: 120 tokens more would make .*at most 128"):
        make(llama_folder, continuation=120).encode(TEXTS[:1])
    with pytest.raises(UserError, match="continuation: expected a number of tokens"):
        TextEncoderSettings(continuation=-1)


def test_padded_lengths():
    lengths = [module._padded_length(n, 300) for n in range(1, 300)]
    assert sorted(set(lengths)) == [*range(16, 129, 8), *range(144, 257, 16), 288, 300]
    assert all(n <= padded for n, padded in enumerate(lengths, 1))


def test_identity_needs_no_weights_and_tells_encoders_apart(llama_folder, monkeypatch):
    monkeypatch.setattr(module, "_open", None)
    settings = {"source": str(llama_folder), "layer": 2}
    identities = [
        TextEncoder(TextEncoderSettings(**settings, **change)).identity
        for change in ({}, {"repeat": False}, {"dtype": "bfloat16"}, {"random_seed": 0}, {"random_seed": 1})
    ]
    identities.append(TextEncoder(TextEncoderSettings(**{**settings, "layer": 1})).identity)
    identities.append(TextEncoder(TextEncoderSettings()).identity)  # known although the file may not be there
    assert len({str(identity) for identity in identities}) == len(identities)


def test_identity_is_of_the_content_not_of_the_place(llama_folder, tmp_path):
    copy = shutil.copytree(llama_folder, tmp_path / "elsewhere")
    settings = TextEncoderSettings(source=str(copy), layer=2)
    original = TextEncoder(TextEncoderSettings(source=str(llama_folder), layer=2)).identity
    assert TextEncoder(settings).identity == original
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert TextEncoder(settings).identity != original


def test_random_weights_come_from_the_seed(llama_folder):
    first, same, other = (make(llama_folder, random_seed=seed).encode(TEXTS) for seed in (3, 3, 4))
    trained = make(llama_folder).encode(TEXTS)
    np.testing.assert_array_equal(first.states, same.states)
    assert np.abs(first.states - other.states).max() > 0.01
    np.testing.assert_array_equal(first.numbers, trained.numbers)
    kernel = np.asarray(make(llama_folder, random_seed=3).params["layers"]["gate"]["kernel"])
    assert kernel.std() == pytest.approx(32**-0.5, rel=0.1)


def test_bfloat16_is_close(llama_folder):
    exact, rounded = make(llama_folder).encode(TEXTS), make(llama_folder, dtype="bfloat16").encode(TEXTS)
    assert rounded.states.dtype == np.float32
    error = np.linalg.norm(rounded.states - exact.states) / np.linalg.norm(exact.states)
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("go", "expected a list of strings, got str"),
        ([], "the list is empty"),
        (["go", 3.0], r"descriptions\[1\]: expected a string, got float"),
        (["go", "  "], r"descriptions\[1\]: the description is empty"),
        (["go " * 100], "the model reads at most 128"),
    ],
)
def test_wrong_descriptions(llama_folder, texts, message):
    with pytest.raises(UserError, match=message):
        make(llama_folder).encode(texts)


def test_damaged_weights_are_noticed(tmp_path):
    tensors = tiny_tensors()
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = np.nan
    with pytest.raises(UserError, match="its weights give states that are NaN"):
        make(write_folder(tmp_path / "model", tensors)).encode(["go"])


def test_limits_stored_with_a_tokenizer_are_lifted(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    jax.tree.map(np.testing.assert_array_equal, make(folder).encode(TEXTS), make(llama_folder).encode(TEXTS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 4}, r"text\.layer, or --layer: 4 is not a layer of this model, which has 3 blocks; choose 1 to 3"),
        ({"layer": 0}, "layer"),
        ({"dtype": "int8"}, "'int8' is neither"),
        ({"source": "absent.gguf"}, r"absent\.gguf: no such GGUF file"),
    ],
)
def test_wrong_settings(llama_folder, settings, message):
    with pytest.raises(UserError, match=message):
        load_text_encoder(TextEncoderSettings(**{"source": str(llama_folder), **settings}))


@pytest.mark.slow
@pytest.mark.weights
def test_smollm2_sees_no_massive_activation(smollm2_file):
    """In deep layers the first token of a sequence is 100 times as large as the rest: none of the text's may be it."""
    for repeat in (True, False):
        settings = TextEncoderSettings(source=str(smollm2_file), layer=20, repeat=repeat)
        states = TextEncoder(settings).encode([TEXTS[0]]).states[0]
        norms = np.linalg.norm(states, axis=-1)
        assert norms.max() < 3 * np.median(norms)


@pytest.mark.weights
@pytest.mark.slow
def test_minilm_knows_what_texts_say(minilm_folder):
    """Means of its states: of three paraphrases each is nearest to its own."""
    encoder = TextEncoder(TextEncoderSettings(source="minilm", layer=6, units=False))
    assert (
        encoder.identity["weights_sha256"]
        == TextEncoder(TextEncoderSettings(str(minilm_folder))).identity["weights_sha256"]
    )
    texts = ["open the drawer", "pull the window shut", "run as fast as a metre per second"]
    texts += ["get the drawer to be open", "close the window", "keep a speed of one metre per second"]
    prompt = encoder.encode(texts)
    means = (prompt.states * prompt.mask[..., None]).sum(1) / prompt.mask.sum(1, keepdims=True)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    similarity = means[:3] @ means[3:].T
    assert similarity.argmax(axis=1).tolist() == [0, 1, 2]
    assert similarity.diagonal().min() > 0.6


@pytest.mark.weights
def test_smollm2_tokens_of_numbers(smollm2_file):
    text = "Go to (0.31, −0.42)"
    encoder = TextEncoder(TextEncoderSettings(source=str(smollm2_file), layer=1, hide_numbers=False))
    offsets = encoder._tokenize(text).offsets
    prompt = encoder.encode([text])
    pieces = [[text[slice(*offsets[t])] for t in np.flatnonzero(prompt.number_index[0] == k)] for k in (0, 1)]
    assert pieces[0] == ["0", ".", "3", "1"]
    assert "".join(pieces[1][-4:]) == "0.42"
    assert all("−" in piece for piece in pieces[1][:-4])
    np.testing.assert_allclose(np.unique(prompt.numbers[0]), [-0.42, 0, 0.31], rtol=1e-6)
