"""Hidden states against `transformers` on torch, from the same weights, at every layer."""

from functools import partial

import numpy as np
import pytest
from tiny_gguf import write_byte_level, write_gguf
from tiny_llama import block_outputs, tiny_tokenizer

from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.gguf import open_gguf
from llmdpd_jax.models.llm.network import hidden_states
from llmdpd_jax.models.llm.safetensors import open_safetensors

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")

TEXTS = [
    "Navigate to position (0.31, -0.42).",
    "reach",
    "Run forward at 1.5 m/s, then hold −0.25 rad; don't stop.\nTwo lines, naïve café 北京 🚀",
    "Push the puck to a goal, avoiding the wall in front of it.",
]


def right(row: list[int], length: int) -> list[int]:
    return row + [0] * (length - len(row))


def left(row: list[int], length: int) -> list[int]:
    return [0] * (length - len(row)) + row


def assert_same_states(checkpoint, model, rows: list[list[int]], cut: int) -> None:
    """All layers of all rows, padded into one batch on either side, within 1e-4 of torch (relative, L2), unpadded."""
    with torch.no_grad():
        # After each block, [1, L, D]; after the last one of a decoder normed.
        outputs = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[1:] for row in rows]
    expected = [[states[0].numpy() for states in layers] for layers in outputs]
    length = max(map(len, rows)) + 5
    shallow = checkpoint.config.truncate(cut)
    whole_params, shallow_params = load_params(checkpoint, checkpoint.config), load_params(checkpoint, shallow)
    for pad in (right, left):
        tokens = np.array([pad(row, length) for row in rows], np.int32)
        mask = np.array([pad([True] * len(row), length) for row in rows], bool)
        layers = [*block_outputs(checkpoint, tokens, mask)[:-1]]
        layers.append(hidden_states(checkpoint.config, whole_params, tokens, mask))
        truncated = hidden_states(shallow, shallow_params, tokens, mask)
        for i, row in enumerate(expected):
            assert len(row) == len(layers)
            for layer, states in enumerate(row):
                for ours in [layers[layer], truncated] if layer == cut - 1 else [layers[layer]]:
                    error = np.linalg.norm(np.asarray(ours)[i][mask[i]] - states) / np.linalg.norm(states)
                    assert error <= 1e-4, f"{pad.__name__}, text {i}, layer {layer + 1}: relative error {error:.1e}"


def tiny_configs() -> dict:
    """For every family a transformers config of a few thousand parameters."""
    import transformers as t

    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
    }
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    decoder = partial(dict, **sizes, **tokens, num_key_value_heads=2)
    # Wavelengths of heads of 8 channels: 6 (kept), 63 (between), 628 and more (stretched).
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 128, "rope_theta": 10000.0}
    linear = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}
    mixed = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    gemma_ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    }
    return {
        "llama": t.LlamaConfig(**decoder(), rope_theta=50000.0, rms_norm_eps=1e-5),
        "llama wide heads": t.LlamaConfig(**decoder(), head_dim=16),
        "llama3": t.LlamaConfig(**decoder(), rope_parameters=llama3),
        "llama linear": t.LlamaConfig(**decoder(), rope_parameters=linear),
        "olmo": t.OlmoConfig(**decoder(), clip_qkv=1.0),
        "olmo unclipped": t.OlmoConfig(**decoder()),
        "olmo2": t.Olmo2Config(**decoder()),
        "qwen2": t.Qwen2Config(**decoder()),
        "qwen2 window": t.Qwen2Config(**decoder(), use_sliding_window=True, sliding_window=7, max_window_layers=2),
        "qwen3": t.Qwen3Config(**decoder(), head_dim=16),
        "gemma3_text": t.Gemma3TextConfig(
            **decoder(),
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=5,
            layer_types=mixed,
            rope_parameters=gemma_ropes,
        ),
        "bert": t.BertConfig(**sizes, pad_token_id=0),
    }


FAMILIES = (
    "llama",
    "llama wide heads",
    "llama3",
    "llama linear",
    "olmo",
    "olmo unclipped",
    "olmo2",
    "qwen2",
    "qwen2 window",
    "qwen3",
    "gemma3_text",
    "bert",
)


def tiny_model(config, folder):
    """A model of transformers with random weights, saved into `folder` with a tokenizer."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            # Norm scales and biases vary about what they start with; matrices are large enough that attention is not
            # uniform.
            noise = torch.randn_like(tensor) * 0.4
            tensor.copy_(noise if tensor.ndim > 1 else tensor + noise)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer()).save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_model(family, tmp_path):
    model = tiny_model(tiny_configs()[family], tmp_path)
    checkpoint = open_safetensors(tmp_path)
    assert_same_states(checkpoint, model, [checkpoint.tokenizer.encode(text).ids for text in TEXTS], cut=3)


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "dbrx", "qwen2"])
def test_tokenizers_from_gguf_files(pre, tmp_path):
    from transformers import AutoTokenizer

    # Token 0 is "!", which no text has: transformers takes it for a special one.
    ends = [lambda w: w.add_bos_token_id(0), lambda w: w.add_add_bos_token(False)]
    path = write_gguf(tmp_path / "a.gguf", tokenizer=lambda w: write_byte_level(w, pre), more=ends)
    ours, theirs = open_gguf(path).tokenizer, AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in [*TEXTS, "IT'S   12345 go\n\n  to\tthe 'goal'"]:
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def assert_same_gguf(path, cut: int) -> None:
    """Tokens and states of a GGUF file, against transformers reading the same file."""
    pytest.importorskip("accelerate", reason="transformers needs it to read GGUF files")
    from transformers import AutoModel, AutoTokenizer

    checkpoint = open_gguf(path)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert rows == [checkpoint.tokenizer.encode(text).ids for text in TEXTS]
    model = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    assert_same_states(checkpoint, model, rows, cut)


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2(smollm2_file):
    assert_same_gguf(smollm2_file, cut=10)


@pytest.mark.weights
@pytest.mark.slow
def test_gemma3(gemma_file):
    assert_same_gguf(gemma_file, cut=6)


@pytest.mark.weights
@pytest.mark.slow
def test_minilm(minilm_folder):
    from transformers import AutoModel, AutoTokenizer

    checkpoint = open_safetensors(minilm_folder)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert rows == [checkpoint.tokenizer.encode(text).ids for text in TEXTS]
    model = AutoModel.from_pretrained(minilm_folder, dtype=torch.float32).eval()
    assert_same_states(checkpoint, model, rows, cut=3)
