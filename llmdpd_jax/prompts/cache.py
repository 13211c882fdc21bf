"""Encoded descriptions kept on disk, so that the LLM reads a text once, ever, and is not loaded when nothing is new."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load, save

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.text import Reading, TokenStates, check_texts, make_text_prompt, pad_and_stack
from llmdpd_jax.types import TextPrompt


class Encoder(Protocol):
    """What the cache asks of a text encoder (`models.llm.encoder.TextEncoder` is one)."""

    @property
    def identity(self) -> dict:
        """Everything the encoding depends on but the text; JSON-able, and cheap: no weights are loaded for it."""

    def read(self, description: str) -> Reading:
        """What the LLM is given of a description."""

    def encode_each(self, texts: Sequence[str]) -> Iterator[tuple[int, TokenStates]]:
        """Yields (position in texts, what the LLM says of it), in any order."""


def cached_encode(encoder: Encoder, texts: Sequence[str], folder: str | Path, progress: bool = False) -> TextPrompt:
    """As `cached_prompts`, stacked: TextPrompt of NumPy arrays [B, L, ...], L being the length of the longest."""
    return pad_and_stack(cached_prompts(encoder, texts, folder, progress))


def cached_prompts(
    encoder: Encoder, texts: Sequence[str], folder: str | Path, progress: bool = False
) -> list[TextPrompt]:
    """Encodes texts, taking from `folder` what was encoded before and adding to it what was not.

    An entry belongs to one text and one `encoder.identity`: another model, layer or option never meets it. Entries that
    cannot be read are encoded anew. Interrupted, what was done until then is kept.

    Args:
        encoder: asked to encode only if a text is not in the folder yet.
        texts: B descriptions; repeated ones are encoded once.
        folder: made if it does not exist.
        progress: whether to show a progress bar while encoding.

    Returns: B prompts of NumPy arrays [L_i, ...]. Those that are one text to the LLM hold the same array of states.
    Raises: UserError for texts that are not non-empty strings, or a folder that cannot be written.
    """
    readings = [encoder.read(text) for text in check_texts(texts)]
    folder = Path(folder)
    identity = json.dumps(encoder.identity, sort_keys=True)
    # Descriptions that differ in hidden numbers only are one text to the LLM.
    paths = {reading.text: folder / _file_name(identity, reading.text) for reading in readings}
    known = {text: tokens for text, path in paths.items() if (tokens := _read(path)) is not None}

    missing = [text for text in paths if text not in known]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            encoded = encoder.encode_each(missing)
            for i, tokens in track(
                encoded,
                "embedding descriptions",
                total=len(missing),
                disable=not progress,
                console=Console(stderr=True),
            ):
                known[missing[i]] = tokens
                _write(paths[missing[i]], tokens)
        except OSError as error:
            raise UserError(f"{folder}: embeddings cannot be kept there ({error})") from error
    return [make_text_prompt(reading, known[reading.text]) for reading in readings]


def _file_name(identity: str, text: str) -> str:
    return hashlib.sha256(json.dumps([identity, text]).encode()).hexdigest() + ".safetensors"


def _read(path: Path) -> TokenStates | None:
    """The content of a file; None where there is no file or it is not whole."""
    try:
        arrays = load(path.read_bytes())
        tokens = TokenStates(arrays["states"], arrays["offsets"])
    except (OSError, SafetensorError, KeyError):
        return None
    return tokens if np.isfinite(tokens.states).all() else None


def _write(path: Path, tokens: TokenStates) -> None:
    """Writes beside the target and renames, so that a reader never sees half a file."""
    data = save({"states": np.ascontiguousarray(tokens.states), "offsets": np.ascontiguousarray(tokens.offsets)})
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
