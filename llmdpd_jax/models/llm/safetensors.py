"""Model folders as published on the Hugging Face hub: config.json, tokenizer files, *.safetensors. No torch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.bert import BertConfig
from llmdpd_jax.models.llm.checkpoint import Checkpoint
from llmdpd_jax.models.llm.decoder import VARIANTS, DecoderConfig, Rope
from llmdpd_jax.models.llm.layers import ModelConfig
from llmdpd_jax.models.llm.weights import SOURCES

HUB_PATTERNS = ("*.json", "*.model", "*.txt", "*.safetensors")


def find_folder(source: str) -> Path:
    """The folder of a model given as a local path, or as a hub id ("owner/name"), fetched once through the hub's cache.

    Raises: UserError if there is no such folder and the hub does not deliver one.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    import huggingface_hub

    try:
        try:
            local = huggingface_hub.snapshot_download(source, allow_patterns=HUB_PATTERNS, local_files_only=True)
        except huggingface_hub.errors.LocalEntryNotFoundError:
            local = huggingface_hub.snapshot_download(source, allow_patterns=HUB_PATTERNS)
    # The hub client lets errors of several HTTP libraries through; whichever it is, the cure is the same.
    except Exception as error:
        raise UserError(
            f"text encoder source {source!r}: no such folder, and the Hugging Face hub did not deliver it "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); give {', '.join(map(repr, SOURCES))}, "
            "a .gguf file, a folder with config.json and *.safetensors, or a hub id that can be reached"
        ) from error
    return Path(local)


def open_safetensors(folder: str | Path) -> Checkpoint:
    """Opens a model folder of a family in `VARIANTS` or of BERT's, in one file or in several with an index.

    Raises: UserError if a file is missing or damaged, or the config asks for what these models do not have.
    """
    # Slow to import, and not needed for GGUF files.
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so this is not a model folder")
    try:
        config = translate(folder / "config.json", AutoConfig.from_pretrained(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: config or tokenizer cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: needs a tokenizer.json, for the character positions of tokens")

    backend = tokenizer.backend_tokenizer
    # Some folders store limits meant for other uses.
    backend.no_truncation()
    backend.no_padding()

    handles = {path: _open(path) for path in _weight_files(folder)}
    names = {}
    for handle in handles.values():
        for stored in handle.keys():  # noqa: SIM118 (not a dict, cannot be iterated)
            names[stored.removeprefix("model.").removeprefix("bert.")] = (handle, stored)
    one_left_out = isinstance(config, DecoderConfig) and config.variant == "gemma3_text"

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        handle, stored = names[name]
        part = handle.get_slice(stored)[index]
        if one_left_out and name.endswith("norm.weight"):
            return part.astype(np.float32) + 1
        return part

    return Checkpoint(
        source=str(folder),
        config=config,
        tokenizer=backend,
        shapes={name: tuple(handle.get_slice(stored).get_shape()) for name, (handle, stored) in names.items()},
        read=read,
    )


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file, perhaps cut short ({error})") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        absent = [str(path) for path in files if not path.is_file()]
        if absent:
            raise UserError(f"{index} names files that are not there: {', '.join(absent)}")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise UserError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there")


def translate(path: Path, config) -> ModelConfig:
    """Translates the transformers config read from `path`, refusing what would silently be computed otherwise."""
    kind = config.model_type
    if kind not in ("bert", *VARIANTS):
        families = ", ".join(["bert", *VARIANTS])
        raise UserError(f"{path}: model_type {kind!r} is not supported, only these are: {families}")
    activation = "gelu" if kind == "bert" else "gelu_pytorch_tanh" if kind == "gemma3_text" else "silu"
    supported = {
        "hidden_activation" if kind == "gemma3_text" else "hidden_act": activation,
        "attention_bias": False,
        "mlp_bias": False,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for name, value in supported.items():
        found = getattr(config, name, value)
        if found != value and not (found is None and value is False):
            raise UserError(f"{path}: {name} {found!r} is not supported, only {value!r} is")
    sizes = {
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "max_length": config.max_position_embeddings,
    }
    if kind == "bert":
        return BertConfig(**sizes, norm_eps=config.layer_norm_eps, num_token_types=config.type_vocab_size)

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    local_layers = tuple(layer == "sliding_attention" for layer in getattr(config, "layer_types", None) or ())
    windows = any(local_layers)
    rope, local_rope = _ropes(path, config, head_dim)
    return DecoderConfig(
        **sizes,
        variant=kind,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        rope=rope,
        attention_scale=getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5,
        norm_eps=getattr(config, "rms_norm_eps", 1e-5),  # OLMo's config has none
        clip_qkv=getattr(config, "clip_qkv", None),
        window=config.sliding_window if windows else None,
        local_rope=local_rope if windows else None,
        local_layers=local_layers if windows else (),
    )


def _ropes(path: Path, config, head_dim: int) -> tuple[Rope, Rope]:
    """The rotary embeddings of global and of local layers."""
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:  # transformers 4
        parameters = {"rope_theta": config.rope_theta, **(config.rope_scaling or {})}
        if hasattr(config, "rope_local_base_freq"):
            parameters = {
                "full_attention": parameters,
                "sliding_attention": {"rope_theta": config.rope_local_base_freq},
            }
    if "full_attention" in parameters:
        whole, local = parameters["full_attention"], parameters["sliding_attention"]
    else:
        whole = local = parameters
    return _rope(path, whole, head_dim), _rope(path, local, head_dim)


def _rope(path: Path, parameters: dict, head_dim: int) -> Rope:
    rope = Rope(float(parameters["rope_theta"]))
    kind = parameters.get("rope_type", "default")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{path}: partial_rotary_factor is not supported, only the rotation of whole heads is")
    if kind == "default":
        return rope
    if kind == "linear":
        return replace(rope, divisors=(float(parameters["factor"]),) * (head_dim // 2))
    if kind == "llama3":
        return replace(rope, divisors=_llama3_divisors(rope.frequencies(head_dim), parameters))
    raise UserError(f"{path}: rope_type {kind!r} is not supported, only 'default', 'linear' and 'llama3' are")


def _llama3_divisors(frequencies: np.ndarray, parameters: dict) -> tuple[float, ...]:
    """How Llama 3.1 and later slow the rotation down (arXiv 2407.21783): long wavelengths by `factor`, short ones not.

    Between the two, frequencies are a linear mixture, by how many wavelengths fit into the original context.
    """
    low, high, factor = (parameters[name] for name in ("low_freq_factor", "high_freq_factor", "factor"))
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)  # share of the original frequency
    return tuple(float(d) for d in 1 / (kept + (1 - kept) / factor))
