"""GGUF files of every architecture: names, layouts, quantisation, tokenizers, and what is said of wrong files."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quantisation
from tiny_gguf import FAMILIES, random_tensors, to_llama_cpp, write_byte_level, write_gguf
from tiny_llama import hf_config, tiny_config, tiny_word_pieces, write_folder

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.gguf import open_gguf
from llmdpd_jax.models.llm.network import hidden_states
from llmdpd_jax.models.llm.safetensors import open_safetensors

TOKENS = np.array([[5, 9, 200, 31, 7, 7, 64, 300]], np.int32)
TEXT = "It's 1234 or (0.31, −0.42) – naïve café\n\n  go   quickly!  "


def last_states(checkpoint) -> np.ndarray:
    params = load_params(checkpoint, checkpoint.config)
    return np.asarray(hidden_states(checkpoint.config, params, TOKENS))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_gguf_and_safetensors_of_one_model_agree(architecture, tmp_path):
    config = tiny_config(FAMILIES[architecture])
    tensors = random_tensors(config)
    folder = open_safetensors(write_folder(tmp_path / "model", tensors, hf_config(config)))
    file = open_gguf(write_gguf(tmp_path / "tiny.gguf", architecture, tensors))
    assert folder.config == config
    assert file.config == replace(config, norm_eps=file.config.norm_eps)
    assert file.config.norm_eps == pytest.approx(config.norm_eps, rel=1e-6)
    np.testing.assert_allclose(last_states(file), last_states(folder), rtol=1e-4, atol=1e-5)
    assert file.tokenizer.encode(TEXT).ids == folder.tokenizer.encode(TEXT).ids
    assert file.tokenizer.encode(TEXT).offsets == folder.tokenizer.encode(TEXT).offsets


def test_stretched_rotations(tmp_path):
    """Llama 3 files hold the divisors of the frequencies as a tensor, files of linear stretching one factor."""
    divisors = np.array([1, 1, 1.5, 3, 8, 8, 8, 8], np.float32)
    tensors = random_tensors(tiny_config("llama"))
    stored = open_gguf(write_gguf(tmp_path / "a.gguf", tensors=tensors | {"rope_freqs.weight": divisors}))
    assert stored.config.rope.divisors == tuple(divisors)
    assert np.isfinite(last_states(stored)).all()
    linear = [lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), lambda w: w.add_rope_scaling_factor(4.0)]
    assert open_gguf(write_gguf(tmp_path / "b.gguf", more=linear)).config.rope.divisors == (4.0,) * 8
    yarn = [lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)]
    with pytest.raises(UserError, match=r"rope\.scaling\.type 'yarn' is not supported"):
        open_gguf(write_gguf(tmp_path / "c.gguf", more=yarn))
    with pytest.raises(UserError, match="of which a part is not rotated"):
        open_gguf(write_gguf(tmp_path / "d.gguf", more=[lambda w: w.add_rope_dimension_count(4)]))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_tensors_are_read_in_parts(kind, tmp_path):
    kind = Quantisation[kind]
    config = replace(tiny_config("llama"), mlp_width=64)  # blocks of 32 weights
    tensors = random_tensors(config)
    checkpoint = open_gguf(write_gguf(tmp_path / "a.gguf", config=config, tensors=tensors, quantisation=kind))
    for name in ("layers.0.mlp.down_proj.weight", "layers.1.self_attn.v_proj.weight"):
        expected = gguf.quants.dequantize(gguf.quants.quantize(tensors[name], kind), kind)
        assert 0 < np.abs(expected - tensors[name]).max() < 0.2
        for index in ((slice(None), slice(None)), (slice(3, 9), slice(8, 24))):
            np.testing.assert_array_equal(checkpoint.read(name, index), expected[index])
    queries = gguf.quants.quantize(to_llama_cpp(tensors["layers.0.self_attn.q_proj.weight"], 4), kind)
    expected = gguf.quants.dequantize(queries, kind).reshape(4, 8, 2, 32).swapaxes(1, 2).reshape(64, 32)
    for index in ((slice(None), slice(None)), (slice(3, 9), slice(8, 24))):
        np.testing.assert_array_equal(checkpoint.read("layers.0.self_attn.q_proj.weight", index), expected[index])


def test_a_file_of_another_architecture_or_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="architecture 'gpt2' is not supported, only these are: llama, olmo2"):
        path = tmp_path / "a.gguf"
        writer = gguf.GGUFWriter(path, "gpt2")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        open_gguf(path)
    with pytest.raises(UserError, match="splitting 'tekken' is not supported"):
        open_gguf(write_gguf(tmp_path / "b.gguf", tokenizer=lambda writer: write_byte_level(writer, "tekken")))
    with pytest.raises(UserError, match="tokenizer 't5' is not supported, only these are: gpt2, llama, bert"):
        open_gguf(write_gguf(tmp_path / "c.gguf", tokenizer=lambda writer: writer.add_tokenizer_model("t5")))


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such GGUF file"):
        open_gguf(tmp_path / "absent.gguf")
    (tmp_path / "noise.gguf").write_bytes(b"no GGUF" * 10)
    with pytest.raises(UserError, match=r"noise\.gguf: not a readable GGUF file"):
        open_gguf(tmp_path / "noise.gguf")
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.gguf: not a readable GGUF file"):
        open_gguf(tmp_path / "cut.gguf")


def test_missing_and_unknown_tensors_are_named_by_their_common_names(tmp_path):
    tensors = random_tensors(tiny_config("qwen2"))
    del tensors["layers.1.self_attn.v_proj.bias"]
    tensors["blk.0.sinks.weight"] = np.zeros(4, np.float32)
    checkpoint = open_gguf(write_gguf(tmp_path / "a.gguf", "qwen2", tensors))
    with pytest.raises(UserError) as caught:
        load_params(checkpoint, checkpoint.config)
    assert "missing: layers.1.self_attn.v_proj.bias [32]" in str(caught.value)
    assert "unknown: blk.0.sinks.weight [4]" in str(caught.value)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["It", "'s", " 1234", " IT", "'", "S", " x", "\n\n ", " y"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", " IT", "'", "S", " x", "\n\n ", " y"]),
        ("llama-bpe", ["It", "'s", " ", "123", "4", " IT", "'S", " x", "\n\n", " ", " y"]),
        ("dbrx", ["It", "'s", " ", "123", "4", " IT", "'S", " x", "\n\n", " ", " y"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", " IT", "'S", " x", "\n\n", " ", " y"]),
    ],
)
def test_words_by_hand(pre, words, tmp_path):
    start = [lambda w: w.add_bos_token_id(7)]
    checkpoint = open_gguf(write_gguf(tmp_path / "a.gguf", tokenizer=lambda w: write_byte_level(w, pre), more=start))
    pieces = checkpoint.tokenizer.pre_tokenizer.pre_tokenize_str("It's 1234 IT'S x\n\n  y")
    assert [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in pieces] == words


def test_ends_of_text_are_put_where_the_file_asks_for_them(tmp_path):
    def ends(bos, eos):
        return [
            lambda w: w.add_bos_token_id(7),
            lambda w: w.add_eos_token_id(8),
            lambda w: w.add_add_bos_token(bos),
            lambda w: w.add_add_eos_token(eos),
        ]

    plain = open_gguf(write_gguf(tmp_path / "a.gguf")).tokenizer.encode("go").ids
    for bos, eos in ((False, False), (True, False), (True, True), (False, True)):
        encoding = open_gguf(write_gguf(tmp_path / "b.gguf", more=ends(bos, eos))).tokenizer.encode("go")
        assert encoding.ids == [7] * bos + plain + [8] * eos
    llama3 = write_gguf(
        tmp_path / "c.gguf",
        tokenizer=lambda w: write_byte_level(w, "llama-bpe"),
        more=[lambda w: w.add_bos_token_id(7)],
    )
    assert open_gguf(llama3).tokenizer.encode("go").ids == [7, *plain]


def write_sentence_piece(writer, prefix=False) -> None:
    words = [("<unk>", 0, 2), ("<s>", 0, 3), ("<b>", 0, 4), ("  ", 0, 4)]
    words += [(f"<0x{byte:02X}>", 0, 6) for byte in "é".encode()]
    # The best pairs come first; "▁to" can be built in two ways, of which "▁t" + "o" is the better.
    words += [("▁t", -1, 1), ("to", -2, 1), ("▁to", -3, 1), ("go", -4, 1), *((letter, -9, 1) for letter in "▁tog")]
    tokens, scores, types = zip(*words, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(score) for score in scores])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_space_prefix(prefix)


def test_sentence_piece_by_hand(tmp_path):
    tokenizer = open_gguf(write_gguf(tmp_path / "a.gguf", "gemma3", tokenizer=write_sentence_piece)).tokenizer
    encoding = tokenizer.encode("go to <b>t  éx")
    assert encoding.tokens == ["<s>", "go", "▁to", "▁", "<b>", "t", "  ", "<0xC3>", "<0xA9>", "<unk>"]
    assert encoding.offsets[1:7] == [(0, 2), (2, 5), (5, 6), (6, 9), (9, 10), (10, 12)]
    with_space = write_gguf(tmp_path / "b.gguf", tokenizer=lambda w: write_sentence_piece(w, prefix=True))
    assert open_gguf(with_space).tokenizer.encode("to go").tokens == ["<s>", "▁to", "▁", "go"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces_are_those_of_the_original(lowercase, tmp_path):
    original = tiny_word_pieces(lowercase)
    vocabulary = original.get_vocab()

    def write(writer):
        words = sorted(vocabulary, key=vocabulary.get)
        special = [token.content for token in original.get_added_tokens_decoder().values()]
        # As llama.cpp's converter does it.
        stored = [w if w in special else w[2:] if w.startswith("##") else "▁" + w for w in words]
        writer.add_tokenizer_model("bert")
        writer.add_token_list(stored)
        writer.add_token_types([3 if word in special else 1 for word in words])

    tokenizer = open_gguf(write_gguf(tmp_path / "a.gguf", "bert", tokenizer=write)).tokenizer
    for text in ("Going to the goals [now]", "go (to)  naïve CAFÉ 12, 北京 [MASK]"):
        ours, theirs = tokenizer.encode(text), original.encode(text)
        assert ours.tokens == theirs.tokens
        assert ours.ids == theirs.ids
        assert ours.offsets == theirs.offsets
    assert ours.tokens[0] == "[CLS]"
    assert ("cafe" in "".join(tokenizer.encode("CAFÉ").tokens).replace("##", "")) == lowercase
