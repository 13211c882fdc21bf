"""The weights of a policy alone, for other programs: one safetensors file, no Orbax."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import write_atomically
from llmdpd_jax.training.checkpoint import FORMAT, Checkpoint
from llmdpd_jax.types import Statistics, TextStatistics


class Weights(NamedTuple):
    """What acting needs of a checkpoint; `make_agent(from_json(metadata["config"], ...), ...)` is its agent."""

    params: dict  # the parameters that act, as `Policy.params`
    statistics: Statistics
    text_statistics: TextStatistics
    metadata: dict  # see `checkpoint.make_metadata`


def flat_arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Parameters that act and units by name, as in "params/denoiser/out/kernel" or "statistics/action_low"."""
    tree = {
        "params": checkpoint.state.acting,
        "statistics": vars(checkpoint.statistics),
        "text_statistics": vars(checkpoint.text_statistics),
    }
    return {name: np.asarray(array) for name, array in flatten_dict(tree, sep="/").items()}


def check_target(path: Path) -> None:
    """Raises UserError unless the path names a file that can be one of weights: known before the work."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"{path}: weights are written as FILE.safetensors")


def write_weights(path: Path, checkpoint: Checkpoint) -> int:
    """Writes a safetensors file, with config and other metadata of the checkpoint as JSON; gives its size in bytes."""
    rest = {name: value for name, value in checkpoint.metadata.items() if name != "config"}
    data = save(flat_arrays(checkpoint), {"config": checkpoint.metadata["config"], "checkpoint": json.dumps(rest)})
    write_atomically(path, data)
    return len(data)


def read_weights(path: str | Path) -> Weights:
    """Reads what `write_weights` wrote.

    Raises:
      UserError: no such file, or one that is damaged or of another origin or version.
    """
    try:
        with safe_open(path, "numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            stored = file.metadata()
        metadata = {**json.loads(stored["checkpoint"]), "config": stored["config"]}
        tree = unflatten_dict(flat, sep="/")
        units = Statistics(**tree["statistics"]), TextStatistics(**tree["text_statistics"])
        weights = Weights(tree["params"], *units, metadata)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `llmdpd export --weights-only` writes one") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not weights as `llmdpd export --weights-only` writes them: {error}") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not of this version of llmdpd_jax (format {FORMAT} expected)")
    return weights
