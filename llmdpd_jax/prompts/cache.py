"""Encoded descriptions kept on disk, so that the LLM reads a text once, ever, and is not loaded when nothing is new."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load, save

from llmdpd_jax.errors import UserError
from llmdpd_jax.types import TextPrompt

FIELDS = [field.name for field in fields(TextPrompt)]
PADDING = {"states": 0.0, "mask": False, "numbers": 0.0, "number_index": -1}


class Encoder(Protocol):
    """What the cache asks of a text encoder (`models.llm.encoder.TextEncoder` is one)."""

    @property
    def identity(self) -> dict:
        """Everything the encoding depends on but the text; JSON-able, and cheap: no weights are loaded for it."""

    def encode_each(self, texts: Sequence[str]) -> Iterator[tuple[int, TextPrompt]]:
        """Yields (position in texts, its prompt without padding), in any order."""


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises UserError unless they are one or more non-empty strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"descriptions: expected a list of strings, got {type(texts).__name__}")
    if not texts:
        raise UserError("descriptions: the list is empty, at least one is needed")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"descriptions[{i}]: expected a string, got {type(text).__name__} ({text!r:.60})")
        if not text.strip():
            raise UserError(f"descriptions[{i}]: the description is empty")
    return list(texts)


def pad_and_stack(prompts: Sequence[TextPrompt]) -> TextPrompt:
    """Stacks B prompts of shapes [L_i, ...] into one [B, max L_i, ...] of NumPy arrays, padded on the right."""
    length = max(len(prompt.mask) for prompt in prompts)

    def stack(name: str) -> np.ndarray:
        arrays = [np.asarray(getattr(prompt, name)) for prompt in prompts]
        stacked = np.full((len(arrays), length, *arrays[0].shape[1:]), PADDING[name], arrays[0].dtype)
        for row, array in zip(stacked, arrays, strict=True):
            row[: len(array)] = array
        return stacked

    return TextPrompt(**{name: stack(name) for name in FIELDS})


def cached_encode(encoder: Encoder, texts: Sequence[str], folder: str | Path, progress: bool = False) -> TextPrompt:
    """Encodes texts, taking from `folder` what was encoded before and adding to it what was not.

    An entry belongs to one text and one `encoder.identity`: another model, layer or option never meets it. Entries that
    cannot be read are encoded anew. Interrupted, what was done until then is kept.

    Args:
        encoder: asked to encode only if a text is not in the folder yet.
        texts: B descriptions; repeated ones are encoded once.
        folder: made if it does not exist.
        progress: whether to show a progress bar while encoding.

    Returns: TextPrompt of NumPy arrays [B, L, ...], L being the length of the longest.
    Raises: UserError for texts that are not non-empty strings, or a folder that cannot be written.
    """
    texts = check_texts(texts)
    folder = Path(folder)
    identity = json.dumps(encoder.identity, sort_keys=True)
    paths = {text: folder / _file_name(identity, text) for text in texts}
    prompts = {text: prompt for text, path in paths.items() if (prompt := _read(path)) is not None}

    missing = [text for text in paths if text not in prompts]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            encoded = encoder.encode_each(missing)
            for i, prompt in track(encoded, "Embedding descriptions", total=len(missing), disable=not progress):
                prompts[missing[i]] = prompt
                _write(paths[missing[i]], prompt)
        except OSError as error:
            raise UserError(f"{folder}: embeddings cannot be kept there ({error})") from error
    return pad_and_stack([prompts[text] for text in texts])


def _file_name(identity: str, text: str) -> str:
    return hashlib.sha256(json.dumps([identity, text]).encode()).hexdigest() + ".safetensors"


def _read(path: Path) -> TextPrompt | None:
    """The prompt in a file; None where there is no file or it is not whole."""
    try:
        arrays = load(path.read_bytes())
        prompt = TextPrompt(**{name: arrays[name] for name in FIELDS})
    except (OSError, SafetensorError, KeyError):
        return None
    return prompt if np.isfinite(prompt.states).all() else None


def _write(path: Path, prompt: TextPrompt) -> None:
    """Writes beside the target and renames, so that a reader never sees half a file."""
    data = save({name: np.ascontiguousarray(getattr(prompt, name)) for name in FIELDS})
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
