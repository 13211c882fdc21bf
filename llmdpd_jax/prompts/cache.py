"""Encoded descriptions kept on disk, so that the LLM reads a text once, ever, and is not loaded when nothing is new.

A cache folder has one folder for each encoder's identity, with `identity.json` (what the encoder is, and when it was
last used: the file's time) and one safetensors file for each text.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.text import Reading, TokenStates, check_texts, make_text_prompts, pad_and_stack
from llmdpd_jax.types import TextPrompt

IDENTITY_FILE = "identity.json"
_FOLDER_NAME = re.compile(r"[0-9a-f]{32}")
# Complete, or left by a process that was killed while writing.
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.safetensors|tmp\w+\.part")


class Encoder(Protocol):
    """What the cache asks of a text encoder (`models.llm.encoder.TextEncoder` is one)."""

    @property
    def name(self) -> str:
        """What people call it; nothing depends on it."""

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
    own = Path(folder) / _hash(json.dumps(encoder.identity, sort_keys=True))[:32]
    # Descriptions that differ in hidden numbers only are one text to the LLM.
    paths = {text: own / f"{_hash(text)}.safetensors" for text in dict.fromkeys(reading.text for reading in readings)}
    known = {text: tokens for text, path in paths.items() if (tokens := _read(path)) is not None}

    missing = [text for text in paths if text not in known]
    if missing:
        try:
            own.mkdir(parents=True, exist_ok=True)
            _write(own / IDENTITY_FILE, json.dumps({"name": encoder.name, "identity": encoder.identity}).encode())
            with progress_bar(progress) as bar:
                for i, tokens in bar.track(
                    encoder.encode_each(missing), total=len(missing), description="embedding descriptions"
                ):
                    known[missing[i]] = tokens
                    arrays = {"states": tokens.states, "offsets": tokens.offsets}
                    _write(paths[missing[i]], save({k: np.ascontiguousarray(a) for k, a in arrays.items()}))
        except OSError as error:
            raise UserError(f"{folder}: embeddings cannot be kept there ({error})") from error
    else:
        _note_use(own)
    return make_text_prompts(readings, known)


@dataclass(frozen=True)
class Holding:
    """What a cache holds of one encoder."""

    folder: Path
    name: str  # what the encoder was called when it last added to the cache; empty if unknown
    identity: dict  # of the encoder; empty if unknown: written by an older version, or damaged
    entries: tuple[Path, ...]
    size: int  # bytes
    last_use: float  # seconds since 1970; of an unknown encoder, when it last added to the cache


def list_holdings(folder: str | Path) -> list[Holding]:
    """What a cache folder holds, what was used last first. Empty if the folder does not exist."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    own = [path for path in folder.iterdir() if path.is_dir() and _FOLDER_NAME.fullmatch(path.name)]
    # Entries right in the folder are of versions that did not note whose they are.
    found = [_holding(path) for path in own] + [_holding(folder)]
    return sorted((h for h in found if h.entries or h.identity), key=lambda h: h.last_use, reverse=True)


def clear_holding(holding: Holding) -> None:
    """Deletes the entries, and nothing else that may lie beside them. Raises UserError where that is not allowed."""
    try:
        for path in (*holding.entries, holding.folder / IDENTITY_FILE):
            path.unlink(missing_ok=True)
        if _FOLDER_NAME.fullmatch(holding.folder.name) and not any(holding.folder.iterdir()):
            holding.folder.rmdir()
    except OSError as error:
        raise UserError(f"{holding.folder}: cannot be cleared ({error})") from error


def _holding(folder: Path) -> Holding:
    name, identity, times = "", {}, []
    note = folder / IDENTITY_FILE
    try:
        content = json.loads(note.read_text())
        name, identity, times = str(content["name"]), dict(content["identity"]), [note.stat().st_mtime]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not noted, or not readable
    entries = [(path, path.stat()) for path in folder.iterdir() if _ENTRY_NAME.fullmatch(path.name)]
    last_use = max(times or [status.st_mtime for _, status in entries], default=0.0)
    paths = tuple(path for path, _ in entries)
    return Holding(folder, name, identity, paths, sum(status.st_size for _, status in entries), last_use)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _note_use(folder: Path) -> None:
    with suppress(OSError):  # a folder that can only be read serves as well
        os.utime(folder / IDENTITY_FILE)


def _read(path: Path) -> TokenStates | None:
    """The content of a file; None where there is no file or it is not whole."""
    try:
        arrays = load(path.read_bytes())
        tokens = TokenStates(arrays["states"], arrays["offsets"])
    except (OSError, SafetensorError, KeyError):
        return None
    return tokens if np.isfinite(tokens.states).all() else None


def _write(path: Path, data: bytes) -> None:
    """Writes beside the target and renames, so that a reader never sees half a file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
