"""`llmdpd embed`: descriptions read by the LLM into the cache, and what the cache holds."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.encoder import TextEncoder, TextEncoderSettings
from llmdpd_jax.models.llm.weights import SOURCES, cache_folder, fetch_weights, weights_sha256
from llmdpd_jax.prompts.cache import Holding, cached_prompts, clear_holding, list_holdings
from llmdpd_jax.prompts.text import pad_and_stack
from llmdpd_jax.tasks.manifest import load_manifest
from llmdpd_jax.types import TextPrompt

DEFAULT_SOURCE = "smollm2"


def embed(options) -> None:
    """Does what the options of `llmdpd embed` ask for; exactly one of them says what that is."""
    jobs = {"--fetch": options.fetch, "--list": options.list, "--clear": options.clear}
    jobs |= {"--manifest": options.manifest is not None, "--file": options.file is not None}
    asked = [name for name, given in jobs.items() if given]
    if len(asked) != 1:
        raise UserError(f"embed: give one of {', '.join(jobs)}; found {' and '.join(asked) or 'none'}")
    only_for = {"--out": (options.out, ("--manifest", "--file")), "--all": (options.all, ("--clear",))}
    only_for |= {
        "--batch-tokens": (options.batch_tokens, ("--manifest", "--file")),
        "--yes": (options.yes, ("--clear",)),
        "--source": (options.source, ("--fetch", "--clear", "--manifest", "--file")),
        "--layer": (options.layer, ("--clear", "--manifest", "--file")),
    }
    for name, (given, places) in only_for.items():
        if given and asked[0] not in places:
            raise UserError(f"embed: {name} goes with {' or '.join(places)}, not with {asked[0]}")
    if options.fetch:
        source = options.source or DEFAULT_SOURCE
        path = fetch_weights(source)
        print(f"{path}: {SOURCES[source].title}, license: {SOURCES[source].license}")
    elif options.list:
        show_holdings()
    elif options.clear:
        clear(options.source, options.layer, options.all, options.yes)
    else:
        embed_descriptions(options)


# --- Embedding --------------------------------------------------------------------------------------------------------


def embed_descriptions(options) -> None:
    """Reads the descriptions of a manifest or a file, into the cache and, if asked, into a file for other programs."""
    if options.manifest is not None:
        manifest = load_manifest(options.manifest)
        where = str(options.manifest)
        texts = [d for task in manifest.tasks for d in (*task.descriptions, *task.held_out_descriptions)]
        if not texts:
            raise UserError(f"{where}: none of its tasks has a description")
    else:
        where = "standard input" if options.file == "-" else options.file
        texts = read_lines(options.file, where)
    out = options.out and check_target(options.out)
    encoder = TextEncoder(_settings(options.source, options.layer), options.batch_tokens)
    start = time.monotonic()
    prompts = cached_prompts(encoder, texts, embeddings_folder(), progress=True)
    seconds = time.monotonic() - start
    longest = max(len(prompt.mask) for prompt in prompts)
    print(f"{embeddings_folder()}: {len(texts)} descriptions of {where}, at most {longest} tokens, in {seconds:.1f} s")
    if out:
        size = write_prompts(out, pad_and_stack(prompts), texts, encoder.identity)
        print(f"{out}: {size / 1e6:.1f} MB")


def read_lines(file: str, where: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input ("-"), each a description.

    Raises: UserError if there is no such file, it is not text, or a line is empty.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text, at byte {error.start}") from error
    if not any(line.strip() for line in lines):
        raise UserError(f"{where}: holds no description; one per line is expected")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"{where}, line {number}: empty; every line is to be a description")
    return lines


def check_target(out: Path) -> Path:
    """Raises UserError where a file cannot be made: known before the work, not after it."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: the prompts are written as FILE.safetensors")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"{out}: {'is a folder' if out.is_dir() else f'there is no folder {out.parent}'}")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out}: the folder {out.parent} cannot be written to")
    return out


def write_prompts(out: Path, prompts: TextPrompt, texts: Sequence[str], identity: dict) -> int:
    """Writes B padded prompts with their descriptions and the encoder's identity as metadata, and gives the size.

    Arrays: states [B, L, D] float32, mask [B, L] bool, numbers [B, L] float32, number_index [B, L] int32, as in
    `types.TextPrompt`.
    """
    arrays = {name: np.asarray(array) for name, array in vars(prompts).items()}
    metadata = {"descriptions": json.dumps(list(texts)), "text_encoder": json.dumps(identity)}
    data = save(arrays, metadata)
    partial = out.with_name(out.name + ".part")
    try:
        partial.write_bytes(data)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
    return len(data)


# --- The cache --------------------------------------------------------------------------------------------------------


def embeddings_folder() -> Path:
    return cache_folder() / "embeddings"


def show_holdings() -> None:
    """Prints what the cache holds, by encoder."""
    holdings = list_holdings(embeddings_folder())
    if not holdings:
        print(f"{embeddings_folder()}: empty")
        return
    table = Table(box=None)
    for column in ("text encoder", "weights", "layer", "options", "entries", "MB", "last use"):
        table.add_column(column, justify="right" if column in ("layer", "entries", "MB") else "left")
    for holding in holdings:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(holding.last_use))
        table.add_row(*_encoder_cells(holding), str(len(holding.entries)), f"{holding.size / 1e6:.1f}", day)
    table.add_row("all", "", "", "", str(_count(holdings)), f"{_megabytes(holdings):.1f}", "", style="bold")
    Console().print(table)
    print(embeddings_folder())


def clear(source: str | None, layer: int | None, everything: bool, yes: bool) -> None:
    """Deletes entries: of one source, of all its layers or of one, or of everything. Asks first unless `yes`."""
    if everything and (source or layer):
        raise UserError("embed --clear: --all is of every source and layer; leave out --source and --layer")
    holdings = list_holdings(embeddings_folder())
    if not everything:
        weights = TextEncoder(_settings(source, layer)).identity["weights_sha256"]
        holdings = [
            h
            for h in holdings
            if h.identity.get("weights_sha256") == weights and layer in (None, h.identity.get("layer"))
        ]
    whose = (
        "of all encoders" if everything else f"of {source or DEFAULT_SOURCE}" + (f", layer {layer}" if layer else "")
    )
    if not holdings:
        print(f"{embeddings_folder()}: holds no embeddings {whose}")
        return
    what = f"{_count(holdings)} embeddings {whose}, {_megabytes(holdings):.1f} MB"
    if not yes and not _confirmed(f"{embeddings_folder()}: delete {what}? [y/N] "):
        print("nothing deleted")
        return
    for holding in holdings:
        clear_holding(holding)
    print(f"{embeddings_folder()}: deleted {what}")


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        raise UserError("embed --clear: nobody to ask; --yes deletes without asking") from None


def _settings(source: str | None, layer: int | None) -> TextEncoderSettings:
    given = {"source": source, "layer": layer}
    return TextEncoderSettings(**{name: value for name, value in given.items() if value is not None})


def _encoder_cells(holding: Holding) -> tuple[str, str, str, str]:
    """Name, weights, layer and options that are not the default, as far as they are known."""
    identity, usual = holding.identity, TextEncoderSettings()
    options = [
        f"{name}={identity[name]}"
        for name in ("repeat", "hide_numbers", "units", "continuation", "dtype", "random_seed")
        if identity.get(name, getattr(usual, name)) != getattr(usual, name)
    ]
    weights = str(identity.get("weights_sha256", ""))[:12]
    return _name(holding), weights, str(identity.get("layer", "")), " ".join(options)


def _name(holding: Holding) -> str:
    """An LLM that can be fetched goes by its own name, wherever it was loaded from."""
    known = {weights_sha256(name): name for name in SOURCES}
    return known.get(holding.identity.get("weights_sha256")) or holding.name or "unknown"


def _count(holdings: Sequence[Holding]) -> int:
    return sum(len(holding.entries) for holding in holdings)


def _megabytes(holdings: Sequence[Holding]) -> float:
    return sum(holding.size for holding in holdings) / 1e6
