"""Model folders as published on the Hugging Face hub: config.json, tokenizer files, *.safetensors. No torch."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.checkpoint import Checkpoint
from llmdpd_jax.models.llm.llama import LlamaConfig

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
            f"({type(error).__name__}: {str(error).splitlines()[0]}); give 'smollm2', a .gguf file, "
            "a folder with config.json and *.safetensors, or a hub id that can be reached"
        ) from error
    return Path(local)


def open_safetensors(folder: str | Path) -> Checkpoint:
    """Opens a Llama-family model folder, in one file or in several with an index.

    Raises: UserError if a file is missing or damaged, or the config asks for what this decoder does not have.
    """
    # Slow to import, and not needed for GGUF files.
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so this is not a model folder")
    try:
        config = _config(folder, AutoConfig.from_pretrained(folder))
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
            names[stored.removeprefix("model.")] = (handle, stored)

    def read(name: str) -> np.ndarray:
        handle, stored = names[name]
        return np.asarray(handle.get_tensor(stored))

    return Checkpoint(
        source=str(folder),
        config=config,
        tokenizer=backend,
        shapes={name: tuple(handle.get_slice(stored).get_shape()) for name, (handle, stored) in names.items()},
        read=read,
    )


def _open(path: Path):
    try:
        # "flax" rather than "numpy", which has no bfloat16.
        return safe_open(path, framework="flax")
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


def _config(folder: Path, config) -> LlamaConfig:
    """Translates a transformers config, refusing what the decoder would silently compute otherwise."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    demands = {
        "model_type": (config.model_type, "llama"),
        "hidden_act": (getattr(config, "hidden_act", None), "silu"),
        "attention_bias": (getattr(config, "attention_bias", False), False),
        "mlp_bias": (getattr(config, "mlp_bias", False), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for name, (value, supported) in demands.items():
        if value != supported:
            raise UserError(f"{folder}/config.json: {name} {value!r} is not supported, only {supported!r} is")
    return LlamaConfig(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        mlp_width=config.intermediate_size,
        # transformers 5 moved it into rope_parameters
        rope_theta=float(rope.get("rope_theta") or config.rope_theta),
        norm_eps=config.rms_norm_eps,
        max_length=config.max_position_embeddings,
    )
