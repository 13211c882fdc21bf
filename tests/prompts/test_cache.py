"""The disk cache of embeddings: what is encoded, what is read back, what survives damage."""

import os
import time

import jax
import numpy as np
import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.cache import cached_encode, clear_holding, list_holdings
from llmdpd_jax.prompts.numbers import Number
from llmdpd_jax.prompts.text import Reading, TokenStates, make_text_prompts, pad_and_stack, read_description
from llmdpd_jax.types import TextPrompt


def tokens_of(text: str, shift: float = 0.0) -> TokenStates:
    length, ends = len(text.split()), np.cumsum([len(word) + 1 for word in text.split()])
    states = np.arange(length * 3, dtype=np.float32).reshape(length, 3) + len(text) + shift
    return TokenStates(states, np.stack([ends - 1 - [len(w) for w in text.split()], ends - 1], 1).astype(np.int32))


def prompt_of(text: str, shift: float = 0.0) -> TextPrompt:
    reading = read_description(text, hide=True)
    return make_text_prompts([reading], {reading.text: tokens_of(reading.text, shift)})[0]


class CountingEncoder:
    """Encodes by counting words, and remembers what it was asked for."""

    def __init__(self, **identity):
        self.name = "counting"
        self.identity, self.shift, self.asked = {"model": "words", **identity}, float(len(identity)), []

    def read(self, description):
        return read_description(description, hide=True)

    def encode_each(self, texts):
        self.asked += texts
        for i in reversed(range(len(texts))):
            yield i, tokens_of(texts[i], self.shift)


def assert_equal(a: TextPrompt, b: TextPrompt) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_pad_and_stack():
    stacked = pad_and_stack([prompt_of("-0.5"), prompt_of("up 0.25")])
    assert stacked.states.tolist() == [[[1, 2, 3], [0, 0, 0]], [[4, 5, 6], [7, 8, 9]]]
    assert stacked.mask.tolist() == [[True, False], [True, True]]
    assert stacked.numbers.tolist() == [[-0.5, 0], [0, 0.25]]
    assert stacked.number_index.tolist() == [[0, -1], [-1, 0]]
    assert [stacked.states.dtype, stacked.number_index.dtype] == [np.float32, np.int32]


def test_each_text_is_encoded_once(tmp_path):
    texts = ["go left", "go to the right", "go left"]
    first = CountingEncoder()
    encoded = cached_encode(first, texts, tmp_path / "new" / "folder")
    assert_equal(encoded, pad_and_stack([prompt_of(text) for text in texts]))
    assert first.asked == ["go left", "go to the right"]

    second = CountingEncoder()
    more = cached_encode(second, ["stay", *texts], tmp_path / "new" / "folder", progress=True)
    assert second.asked == ["stay"]
    assert_equal(more, pad_and_stack([prompt_of(text) for text in ["stay", *texts]]))


def test_the_llm_reads_descriptions_once_that_differ_in_hidden_numbers_only(tmp_path):
    encoder = CountingEncoder()
    encoded = cached_encode(encoder, ["go 0.5 up", "go minus three up"], tmp_path)
    assert encoder.asked == ["go 1 up"]
    assert encoded.numbers.tolist() == [[0, 0.5, 0], [0, -3, 0]]


def test_prompts_of_one_text_share_all_but_the_values():
    readings = [read_description(text, hide=True) for text in ("go 0.5 up", "go minus three up", "go up")]
    half, three, none = make_text_prompts(readings, {reading.text: tokens_of(reading.text) for reading in readings})
    assert half.states is three.states and half.mask is three.mask and half.number_index is three.number_index
    assert half.numbers.tolist() == [0, 0.5, 0] and three.numbers.tolist() == [0, -3, 0]
    assert none.numbers.tolist() == [0, 0] and none.number_index.tolist() == [-1, -1]


def test_a_text_does_not_tell_which_of_its_digits_are_numbers():
    """Prompts are not taken for the same because their texts are."""
    read = Reading("m1 1", (Number(5.0, 3, 4),)), Reading("m1 1", (Number(5.0, 1, 2),))
    first, second = make_text_prompts(
        read, {"m1 1": TokenStates(np.zeros((2, 1), np.float32), np.array([[0, 2], [3, 4]]))}
    )
    assert first.numbers.tolist() == [0, 5] and second.numbers.tolist() == [5, 0]


def test_other_encoders_do_not_share_entries(tmp_path):
    cached_encode(CountingEncoder(), ["go"], tmp_path)
    other = CountingEncoder(layer=3)
    assert_equal(cached_encode(other, ["go"], tmp_path), pad_and_stack([prompt_of("go", 1.0)]))
    assert other.asked == ["go"]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "not_finite"])
def test_damaged_entries_are_encoded_anew(tmp_path, damage):
    expected = cached_encode(CountingEncoder(), ["go there"], tmp_path)
    (entry,) = tmp_path.glob("*/*.safetensors")
    data = entry.read_bytes()
    not_finite = data.replace(tokens_of("go there").states.tobytes(), np.full(6, np.nan, np.float32).tobytes())
    assert not_finite != data
    entry.write_bytes({"cut": data[:-7], "noise": b"\xff" * 200, "empty": b"", "not_finite": not_finite}[damage])
    encoder = CountingEncoder()
    assert_equal(cached_encode(encoder, ["go there"], tmp_path), expected)
    assert encoder.asked == ["go there"]
    assert entry.read_bytes() == data
    assert {path.name for path in entry.parent.iterdir()} == {entry.name, "identity.json"}


def test_holdings_say_whose_and_when(tmp_path):
    cached_encode(CountingEncoder(), ["go", "stay"], tmp_path)
    cached_encode(CountingEncoder(layer=3), ["go"], tmp_path)
    old = tmp_path / f"{'a' * 64}.safetensors"
    old.write_bytes(b"123")
    for k, path in enumerate([old, *tmp_path.glob("*/identity.json")]):
        os.utime(path, (1000 + k, 1000 + k))
    cached_encode(CountingEncoder(), ["go"], tmp_path)  # used now
    first, second, unknown = list_holdings(tmp_path)
    assert first.identity == {"model": "words"} and len(first.entries) == 2 and first.name == "counting"
    assert second.identity == {"model": "words", "layer": 3} and len(second.entries) == 1
    assert first.size == sum(path.stat().st_size for path in first.entries) > 0
    assert (unknown.identity, unknown.entries, unknown.size, unknown.last_use) == ({}, (old,), 3, 1000)
    assert time.time() - first.last_use < 60 and second.last_use in (1001, 1002)


def test_clearing_one_holding_leaves_the_others(tmp_path):
    cached_encode(CountingEncoder(), ["go"], tmp_path)
    kept = CountingEncoder(layer=3)
    cached_encode(kept, ["go"], tmp_path)
    clear_holding(next(h for h in list_holdings(tmp_path) if "layer" not in h.identity))
    assert [h.identity for h in list_holdings(tmp_path)] == [kept.identity]
    assert len(list(tmp_path.iterdir())) == 1
    after = CountingEncoder()
    cached_encode(after, ["go"], tmp_path)
    assert after.asked == ["go"]


def test_entries_whose_identity_is_damaged_still_serve(tmp_path):
    cached_encode(CountingEncoder(), ["go"], tmp_path)
    next(tmp_path.glob("*/identity.json")).write_text("{")
    (holding,) = list_holdings(tmp_path)
    assert (holding.identity, len(holding.entries)) == ({}, 1)
    after = CountingEncoder()
    cached_encode(after, ["go", "stay"], tmp_path)
    assert after.asked == ["stay"]
    assert list_holdings(tmp_path)[0].identity == after.identity


def test_interrupted_work_is_kept(tmp_path):
    class Failing(CountingEncoder):
        def encode_each(self, texts):
            yield 0, tokens_of(texts[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_encode(Failing(), ["a", "b"], tmp_path)
    after = CountingEncoder()
    cached_encode(after, ["a", "b"], tmp_path)
    assert after.asked == ["b"]


def test_wrong_texts_and_folders(tmp_path):
    encoder = CountingEncoder()
    with pytest.raises(UserError, match=r"descriptions\[1\]: expected a string, got dict"):
        cached_encode(encoder, ["go", {}], tmp_path)
    with pytest.raises(UserError, match=r"descriptions\[0\]: the description is empty"):
        cached_encode(encoder, [""], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="embeddings cannot be kept there"):
        cached_encode(encoder, ["go"], tmp_path / "file")
