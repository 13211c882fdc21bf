"""The disk cache of embeddings: what is encoded, what is read back, what survives damage."""

import jax
import numpy as np
import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.cache import cached_encode
from llmdpd_jax.prompts.text import TokenStates, make_text_prompt, pad_and_stack, read_description
from llmdpd_jax.types import TextPrompt


def tokens_of(text: str, shift: float = 0.0) -> TokenStates:
    length, ends = len(text.split()), np.cumsum([len(word) + 1 for word in text.split()])
    states = np.arange(length * 3, dtype=np.float32).reshape(length, 3) + len(text) + shift
    return TokenStates(states, np.stack([ends - 1 - [len(w) for w in text.split()], ends - 1], 1).astype(np.int32))


def prompt_of(text: str, shift: float = 0.0) -> TextPrompt:
    reading = read_description(text, hide=True)
    return make_text_prompt(reading, tokens_of(reading.text, shift))


class CountingEncoder:
    """Encodes by counting words, and remembers what it was asked for."""

    def __init__(self, **identity):
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


def test_other_encoders_do_not_share_entries(tmp_path):
    cached_encode(CountingEncoder(), ["go"], tmp_path)
    other = CountingEncoder(layer=3)
    assert_equal(cached_encode(other, ["go"], tmp_path), pad_and_stack([prompt_of("go", 1.0)]))
    assert other.asked == ["go"]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "not_finite"])
def test_damaged_entries_are_encoded_anew(tmp_path, damage):
    expected = cached_encode(CountingEncoder(), ["go there"], tmp_path)
    (entry,) = tmp_path.iterdir()
    data = entry.read_bytes()
    not_finite = data.replace(tokens_of("go there").states.tobytes(), np.full(6, np.nan, np.float32).tobytes())
    assert not_finite != data
    entry.write_bytes({"cut": data[:-7], "noise": b"\xff" * 200, "empty": b"", "not_finite": not_finite}[damage])
    encoder = CountingEncoder()
    assert_equal(cached_encode(encoder, ["go there"], tmp_path), expected)
    assert encoder.asked == ["go there"]
    assert entry.read_bytes() == data
    assert list(tmp_path.iterdir()) == [entry]


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
