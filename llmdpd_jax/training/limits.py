"""Memory and disk that do not suffice: what is said of them, in place of a library's error."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmdpd_jax.errors import UserError, out_of_memory, why_not_writable
from llmdpd_jax.training import checkpoint

_LOWER = (
    "Lower what is large: a batch by data.groups or data.group_size, the networks by model.width or model.depth, the "
    "data on a device by data.parts (divides them among devices) or data.streaming=True (reads them from files)"
)
_LOWER_BEFOREHAND = (
    "Data that outgrow the memory are read from files with data.streaming=True; descriptions can be read beforehand, "
    "fewer tokens at once, with: llmdpd embed --manifest=MANIFEST --batch-tokens=N"
)


class OutOfMemory(UserError):
    """Memory did not suffice for updates."""


@contextlib.contextmanager
def memory_for_preparation() -> Iterator[None]:
    """Raises UserError where the block runs out of memory, of the host or of a device."""
    with _memory_for(lambda: _LOWER_BEFOREHAND, "preparing the training", UserError):
        yield


@contextlib.contextmanager
def memory_for_training(sizes: Callable[[], str]) -> Iterator[None]:
    """As `memory_for_preparation`, but OutOfMemory; `sizes` says what takes how much."""
    with _memory_for(lambda: f"{sizes()}. {_LOWER}", "training", OutOfMemory):
        yield


@contextlib.contextmanager
def _memory_for(advice: Callable[[], str], what: str, raised: type[UserError]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise raised(f"{what} ran out of memory ({first_line(error)}). {advice()}") from error


@contextlib.contextmanager
def disk_for_runs(run: Path, folders: Sequence[Path]) -> Iterator[None]:
    """Raises UserError where the block cannot write: which folder, why, what is safe, and how to go on.

    Args:
      run: as it was named.
      folders: of its runs: itself, or one for each seed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax's writer hands on what its library made of it
        reason = why_not_writable(error)
        if reason is None:
            raise
        raise UserError(f"{run}: cannot be written ({reason}). {what_is_safe(run, folders)}") from error


def what_is_safe(run: Path, folders: Sequence[Path]) -> str:
    """What of a run is on disk for good, and how to go on with it."""
    if not all((folder / "config.json").exists() for folder in folders):
        return "Nothing was trained; make room, or name another folder with --out"
    steps = []
    for folder in folders:
        with contextlib.suppress(UserError):
            steps.append(checkpoint.find(folder)[1])
    # Runs side by side go on from the newest step that all of them have.
    kept = "No checkpoint was finished, so it starts anew"
    if len(steps) == len(folders):
        kept = f"The checkpoint of update {min(steps)} is safe"
    return f"{kept}. When it can be written, go on with: llmdpd train --resume={run}"


def describe_sizes(data: Any, state: Any, compiled: Callable[[], Any]) -> str:
    """How much memory the parts of a training run take.

    Args:
      data: arrays that the devices hold; None if they are streamed.
      state: the TrainState, with its optimiser.
      compiled: gives the compiled call of many updates, and may fail.
    """
    parts = [] if data is None else [f"the data {in_words(size_of(data))}"]
    parts.append(f"parameters and optimiser {in_words(size_of(state))}")
    # Compiled once more, from JAX's own cache if that works; what failed before may fail again.
    with contextlib.suppress(Exception):
        parts.append(f"a call of updates {in_words(compiled().memory_analysis().temp_size_in_bytes)} beside them")
    return "In memory: " + ", ".join(parts)


def size_of(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def in_words(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def first_line(error: BaseException) -> str:
    """What an error says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
