"""Tiny models as GGUF files, under the names that the package `gguf` knows for llama.cpp."""

import json

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quantisation
from tiny_llama import tiny_config, tiny_tokenizer

from llmdpd_jax.models.llm.checkpoint import expected_tensors

# Architecture in the file -> family
FAMILIES = {
    "llama": "llama",
    "olmo2": "olmo2",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "bert": "bert",
}
ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}


def random_tensors(config, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under Hugging Face names as the file formats store them."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in expected_tensors(config).items()}
    if getattr(config, "variant", None) == "gemma3_text":  # its files leave out the 1 of norm scales
        return tensors
    return {name: x + 1 if name.lower().endswith("norm.weight") else x for name, x in tensors.items()}


def to_llama_cpp(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row order of llama.cpp for the query and key weights of Llama, as its converter makes it."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(weight.shape)


def write_byte_level(writer, pre: str = "smollm") -> None:
    state = json.loads(tiny_tokenizer().to_str())["model"]
    words = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])


def write_gguf(
    path, architecture="llama", tensors=None, config=None, quantisation=None, tokenizer=write_byte_level, more=()
):
    """Writes a model under the names of llama.cpp; `tensors` bear Hugging Face names without a prefix."""
    config = config or tiny_config(FAMILIES[architecture])
    tensors = random_tensors(config) if tensors is None else tensors
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    if architecture == "bert":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_rope_freq_base(config.rope.theta)
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if architecture == "gemma3":
        writer.add_sliding_window(config.window)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
        writer.add_float32("gemma3.rope.freq_base_swa", config.local_rope.theta)
    for add in more:
        add(writer)
    tokenizer(writer)
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], config.num_layers)
    for name, array in tensors.items():
        if architecture == "llama" and "q_proj" in name:
            array = to_llama_cpp(array, config.num_heads)
        if architecture == "llama" and "k_proj" in name:
            array = to_llama_cpp(array, config.num_kv_heads)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        theirs = names.get_name("model." + name, (".weight", ".bias")) or names.get_name(name, (".weight", ".bias"))
        kind = quantisation if quantisation is not None and array.ndim == 2 else Quantisation.F32
        writer.add_tensor(theirs or name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
