"""Hidden states against `transformers` on torch, from the same weights, at every layer."""

import jax
import numpy as np
import pytest
from tiny_llama import block_outputs

from llmdpd_jax.models.llm.checkpoint import load_params
from llmdpd_jax.models.llm.gguf import open_gguf
from llmdpd_jax.models.llm.llama import hidden_states
from llmdpd_jax.models.llm.safetensors import open_safetensors

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")

TEXTS = [
    "Navigate to position (0.31, -0.42).",
    "reach",
    "Run forward at 1.5 m/s, then hold −0.25 rad; don't stop.\nTwo lines, naïve café 北京 🚀",
    "Push the puck to a goal, avoiding the wall in front of it.",
]


def reference(model, rows: list[list[int]]) -> list[list[np.ndarray]]:
    """For every row of token ids, the states [L, D] after each block; after the last one, normed."""
    with torch.no_grad():
        outputs = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[1:] for row in rows]
    return [[states[0].numpy() for states in layers] for layers in outputs]


def assert_same_states(checkpoint, model, rows: list[list[int]], cut: int) -> None:
    """All layers of all rows, padded on the right into one batch, within 1e-4 of torch (relative, L2)."""
    tokens = np.zeros((len(rows), max(map(len, rows)) + 5), np.int32)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    config = checkpoint.config
    with jax.default_matmul_precision("highest"):
        layers = [*block_outputs(checkpoint, tokens)[:-1]]
    layers.append(np.asarray(hidden_states(config, load_params(checkpoint, config), tokens)))
    shallow = config.truncate(cut)
    truncated = np.asarray(hidden_states(shallow, load_params(checkpoint, shallow), tokens))

    for i, expected in enumerate(reference(model, rows)):
        assert len(expected) == len(layers)
        for layer, states in enumerate(expected):
            for ours in [layers[layer], truncated] if layer == cut - 1 else [layers[layer]]:
                difference = np.linalg.norm(ours[i, : len(rows[i])] - states) / np.linalg.norm(states)
                assert difference <= 1e-4, f"text {i}, layer {layer + 1}: relative error {difference:.1e}"


def test_tiny_llama(llama_folder):
    from transformers import AutoModel

    checkpoint = open_safetensors(llama_folder)
    model = AutoModel.from_pretrained(llama_folder, dtype=torch.float32).eval()
    rows = [checkpoint.tokenizer.encode(text).ids for text in TEXTS]
    assert_same_states(checkpoint, model, rows, cut=2)


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2(smollm2_file):
    pytest.importorskip("accelerate", reason="transformers needs it to read GGUF files")
    from transformers import AutoModel, AutoTokenizer

    checkpoint = open_gguf(smollm2_file)
    folder, name = smollm2_file.parent, smollm2_file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert rows == [checkpoint.tokenizer.encode(text).ids for text in TEXTS]
    model = AutoModel.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    assert_same_states(checkpoint, model, rows, cut=10)
