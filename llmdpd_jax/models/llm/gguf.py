"""GGUF files (the format of llama.cpp): config, dequantised tensors and tokenizer, without torch."""

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.checkpoint import Checkpoint
from llmdpd_jax.models.llm.decoder import DecoderConfig, Rope

TOP_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type that stand for tokens matched as a whole


def open_gguf(path: str | Path) -> Checkpoint:
    """Opens a Llama-family GGUF file; quantised tensors are dequantised to float32 as they are read.

    Raises: UserError if the file is missing, not readable as GGUF, or of another architecture or tokenizer.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable GGUF file, perhaps cut short ({error})") from error

    def field(name: str, default=None):
        if name not in reader.fields:
            if default is not None:
                return default
            raise UserError(f"{path}: the GGUF metadata have no {name!r}")
        return reader.fields[name].contents()

    architecture = field("general.architecture")
    if architecture != "llama":
        raise UserError(f"{path}: architecture {architecture!r} is not supported, only 'llama' is")

    width, num_heads = field("llama.embedding_length"), field("llama.attention.head_count")
    embedding_shape = next((t.shape for t in reader.tensors if t.name == "token_embd.weight"), (0, 0))
    head_dim = field("llama.rope.dimension_count", width // num_heads)
    config = DecoderConfig(
        variant=architecture,
        vocab_size=int(embedding_shape[1]),
        width=width,
        num_layers=field("llama.block_count"),
        num_heads=num_heads,
        num_kv_heads=field("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        mlp_width=field("llama.feed_forward_length"),
        rope=Rope(field("llama.rope.freq_base", 10000.0)),
        attention_scale=head_dim**-0.5,
        norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        max_length=field("llama.context_length"),
    )
    tensors = {_common_name(tensor.name): tensor for tensor in reader.tensors}

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = tensors[name]
        weights = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp pairs neighbouring channels for the rotation, this package first with second half.
            pairs = weights.reshape(-1, config.head_dim // 2, 2, weights.shape[-1])
            weights = pairs.swapaxes(1, 2).reshape(weights.shape)
        return weights[index]

    return Checkpoint(
        source=str(path),
        config=config,
        tokenizer=_tokenizer(path, field),
        # GGUF names the fastest axis first.
        shapes={name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()},
        read=read,
    )


def _common_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; names it does not know stay, to be reported as unknown."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    match name.split("."):
        case ["blk", layer, kind, "weight"] if kind in LAYER_NAMES:
            return f"layers.{layer}.{LAYER_NAMES[kind]}.weight"
    return name


def _tokenizer(path: Path, field) -> Tokenizer:
    """Byte-level BPE from the metadata of a GGUF file."""
    splitters = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt-2": [],
    }
    kind, splitter = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")
    if kind != "gpt2" or splitter not in splitters:
        raise UserError(
            f"{path}: tokenizer {kind!r} with splitting {splitter!r} is not supported, only 'gpt2' with "
            f"{sorted(splitters)} is; use the model's folder of safetensors instead"
        )
    words = field("tokenizer.ggml.tokens")
    vocabulary = {word: token for token, word in enumerate(words)}
    merges = [tuple(pair.split(" ")) for pair in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitters[splitter], byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    whole = [
        AddedToken(word, special=kind == CONTROL, normalized=False)
        for word, kind in zip(words, field("tokenizer.ggml.token_type"), strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(whole)
    return tokenizer
