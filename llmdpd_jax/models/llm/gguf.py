"""GGUF files (the format of llama.cpp): config, dequantised tensors and tokenizer, without torch."""

from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.bert import BertConfig
from llmdpd_jax.models.llm.checkpoint import Checkpoint
from llmdpd_jax.models.llm.decoder import DecoderConfig, Rope
from llmdpd_jax.models.llm.gguf_tokenizer import make_tokenizer
from llmdpd_jax.models.llm.layers import ModelConfig

# Architecture in the file -> variant of the decoder, or "bert". Gemma's norm scales include the 1 in these files.
ARCHITECTURES = {
    "llama": "llama",
    "olmo2": "olmo2",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "bert": "bert",
}
DECODER_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = dict.fromkeys(ARCHITECTURES, DECODER_NAMES) | {
    "gemma3": DECODER_NAMES | {"ffn_norm": "pre_feedforward_layernorm"},
    "bert": {
        "token_embd": "embeddings.word_embeddings",
        "position_embd": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings",
        "token_embd_norm": "embeddings.LayerNorm",
        "attn_q": "attention.self.query",
        "attn_k": "attention.self.key",
        "attn_v": "attention.self.value",
        "attn_output": "attention.output.dense",
        "attn_output_norm": "attention.output.LayerNorm",
        "ffn_up": "intermediate.dense",
        "ffn_down": "output.dense",
        "layer_output_norm": "output.LayerNorm",
    },
}
ROPE_DIVISORS = "rope_freqs.weight"  # a tensor of Llama 3 files that belongs to the config
# Constants of Gemma 3 that its files need not state.
GEMMA_LOCAL_THETA, GEMMA_GLOBAL_EVERY = 10000.0, 6


class Metadata:
    """The fields of a GGUF file, with errors that name the file."""

    def __init__(self, path: Path, fields: dict):
        self.path, self._fields = path, fields
        self._read = cache(lambda name: fields[name].contents())  # slow for a whole vocabulary
        self.architecture = self["general.architecture"]
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UserError(f"{path}: architecture {self.architecture!r} is not supported, only these are: {known}")

    def get(self, name: str, default=None):
        """The value of a field; names that start with a dot are the architecture's own."""
        name = self.architecture + name if name.startswith(".") else name
        return self._read(name) if name in self._fields else default

    def __getitem__(self, name: str):
        value = self.get(name)
        if value is None:
            raise UserError(f"{self.path}: the GGUF metadata have no {name!r}")
        return value


def open_gguf(path: str | Path) -> Checkpoint:
    """Opens a GGUF file of one of `ARCHITECTURES`; quantised tensors are dequantised to float32 as they are read.

    Raises: UserError if the file is missing, not readable as GGUF, or of another architecture or tokenizer.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable GGUF file, perhaps cut short ({error})") from error
    metadata = Metadata(path, reader.fields)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    divisors = stored.pop(ROPE_DIVISORS, None)
    config = _config(metadata, stored, None if divisors is None else _dequantize(path, divisors))
    tensors = {_common_name(metadata.architecture, name): tensor for name, tensor in stored.items()}

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        if metadata.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp pairs neighbouring channels for the rotation, this package first with second half.
            weights = _dequantize(path, tensors[name])
            pairs = weights.reshape(-1, config.head_dim // 2, 2, weights.shape[-1])
            return pairs.swapaxes(1, 2).reshape(weights.shape)[index]
        # Rows are quantised each by itself.
        return _dequantize(path, tensors[name], index[0])[:, *index[1:]]

    return Checkpoint(
        source=str(path),
        config=config,
        tokenizer=make_tokenizer(metadata),
        # GGUF names the fastest axis first.
        shapes={name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()},
        read=read,
    )


def _dequantize(path: Path, tensor, rows: slice = slice(None)) -> np.ndarray:
    try:
        return dequantize(tensor.data[rows], tensor.tensor_type)
    except NotImplementedError as error:
        raise UserError(f"{path}: {tensor.name} is quantised in a way that cannot be read ({error})") from error


def _common_name(architecture: str, name: str) -> str:
    """The Hugging Face name of a GGUF tensor; names it does not know stay, to be reported as unknown."""
    names, block = NAMES[architecture], "encoder.layer" if architecture == "bert" else "layers"
    match name.split("."):
        case ["blk", layer, kind, leaf] if kind in names:
            return f"{block}.{layer}.{names[kind]}.{leaf}"
        case [kind, leaf] if kind in names:
            return f"{names[kind]}.{leaf}"
    return name


def _config(metadata: Metadata, tensors: dict, divisors: np.ndarray | None) -> ModelConfig:
    """The config that a file's metadata describe; tensors serve to count rows of embedding tables."""

    def rows(name: str) -> int:
        return int(tensors[name].shape[1]) if name in tensors else 0

    sizes = {
        "vocab_size": rows("token_embd.weight"),
        "width": metadata[".embedding_length"],
        "num_layers": metadata[".block_count"],
        "num_heads": metadata[".attention.head_count"],
        "mlp_width": metadata[".feed_forward_length"],
        "max_length": metadata[".context_length"],
    }
    if metadata.architecture == "bert":
        epsilon = metadata[".attention.layer_norm_epsilon"]
        return BertConfig(**sizes, norm_eps=epsilon, num_token_types=rows("token_types.weight"))

    width_per_head = sizes["width"] // sizes["num_heads"]
    head_dim = metadata.get(".attention.key_length", width_per_head)
    if metadata.get(".rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{metadata.path}: heads of which a part is not rotated are not supported")
    theta = metadata.get(".rope.freq_base", 10000.0)
    kind = metadata.get(".rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UserError(f"{metadata.path}: rope.scaling.type {kind!r} is not supported, only 'none' and 'linear' are")
    if kind == "linear":
        divisors = np.full(head_dim // 2, metadata[".rope.scaling.factor"])
    decoder = {
        "variant": ARCHITECTURES[metadata.architecture],
        "norm_eps": metadata[".attention.layer_norm_rms_epsilon"],
        "num_kv_heads": metadata.get(".attention.head_count_kv", sizes["num_heads"]),
        "head_dim": head_dim,
        "rope": Rope(theta, () if divisors is None else tuple(divisors.tolist())),
        "attention_scale": head_dim**-0.5,
    }
    if metadata.architecture == "gemma3":
        every = metadata.get(".attention.sliding_window_pattern", GEMMA_GLOBAL_EVERY)
        decoder |= {
            "window": metadata[".attention.sliding_window"],
            "local_rope": Rope(metadata.get(".rope.freq_base_swa", GEMMA_LOCAL_THETA)),
            "local_layers": tuple((layer + 1) % every != 0 for layer in range(sizes["num_layers"])),
        }
        if sizes["num_layers"] == 62:  # the 27B model, the only one that scales by another width
            decoder["attention_scale"] = width_per_head**-0.5
    return DecoderConfig(**sizes, **decoder)
