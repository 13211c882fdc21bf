"""Checkpoints: self-contained, written by Orbax in the background, no pickle.

runs/x/checkpoints/<step>/networks    the TrainState without the optimiser's: all that acting needs
                          optimiser   the optimiser's state, for exact resume
                          statistics  units of data and text
                          metadata    config, shapes, task family, identity of the text encoder (JSON)

The metadata also hold a hash of everything: Orbax does not notice a flipped bit in an array.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from llmdpd_jax import __version__
from llmdpd_jax.agents.diffusion_ql import TrainState
from llmdpd_jax.agents.llmdpd import Agent, make_agent
from llmdpd_jax.config import from_json, to_json
from llmdpd_jax.errors import ProcessLost, UserError
from llmdpd_jax.parallel import whole
from llmdpd_jax.types import Array, Batch, Statistics, TextPrompt, TextStatistics, TrajectoryPrompt

FORMAT = 4


class Checkpoint(NamedTuple):
    """All that acting or resuming needs. To act, nothing of the optimiser is read: `state.opt_state` is empty."""

    agent: Agent
    config: Any  # ConfigDict
    state: TrainState
    statistics: Statistics
    text_statistics: TextStatistics
    metadata: dict  # see `make_metadata`
    path: Path


def make_metadata(
    config, statistics: Statistics, text_statistics: TextStatistics, encoder: dict, tuning: dict, manifest: dict
) -> dict:
    """What a checkpoint says of itself, JSON-able.

    Args:
      encoder: identity of the text encoder, with the hash of its weights.
      tuning: what is trained of the LLM; empty if it is frozen.
      manifest: `family`, `horizon` and `digest` of the training data.
    """
    return {
        "format": FORMAT,
        "llmdpd_jax": __version__,
        "config": to_json(config),
        "observation_size": statistics.observation_mean.shape[0],
        "action_size": statistics.action_low.shape[0],
        "text_width": text_statistics.state_axes.shape[1],
        "llm_width": text_statistics.state_axes.shape[0],
        "text_encoder": encoder,
        "tuning": {path: list(leaf.shape) for path, leaf in flatten_dict(tuning, sep="/").items()},
        "manifest": manifest,
    }


def digest(tree: Any) -> str:
    """SHA-256 over every array of a tree: two with the same digest hold the same numbers."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(f"{leaf.shape}{leaf.dtype}".encode())
        found.update(np.ascontiguousarray(whole(leaf)))
    return found.hexdigest()


def _text_digest(metadata: dict) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def example_inputs(metadata: dict) -> tuple[Batch, TextPrompt]:
    """Inputs of the right shapes, to initialise an agent's networks with."""
    observation_size, action_size = metadata["observation_size"], metadata["action_size"]
    chunk = from_json(metadata["config"], "config").agent.chunk

    def zeros(*shape, dtype=float):
        return jax.numpy.zeros(shape, dtype)

    prompt = TrajectoryPrompt(
        observations=zeros(1, 1, observation_size),
        actions=zeros(1, 1, action_size),
        rewards=zeros(1, 1),
        next_observations=zeros(1, 1, observation_size),
        mask=zeros(1, 1, dtype=bool),
    )
    batch = Batch(
        observations=zeros(1, 1, observation_size),
        actions=zeros(1, 1, chunk * action_size),
        rewards=zeros(1, 1),
        next_observations=zeros(1, 1, observation_size),
        terminations=zeros(1, 1, dtype=bool),
        task_id=zeros(1, dtype=int),
        prompt=prompt,
    )
    text = TextPrompt(
        states=zeros(1, 1, metadata["text_width"]),
        mask=zeros(1, 1, dtype=bool),
        numbers=zeros(1, 1),
        number_index=zeros(1, 1, dtype=int),
    )
    return batch, text


def initial_state(agent: Agent, metadata: dict, key: Array, tuning: dict) -> TrainState:
    """A fresh TrainState for the shapes in the metadata, and what is trained of the LLM."""
    return agent.init(key, *example_inputs(metadata), tuning)


@contextlib.contextmanager
def manager(run: Path, newest: int = 2, every: int = 0) -> Iterator[ocp.CheckpointManager]:
    """The run folder's checkpoint manager. What it still writes is on disk when the block ends.

    Args:
      newest: how many of the newest checkpoints are kept.
      every: checkpoints of multiples of so many steps are kept, too; 0: none is.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=newest, keep_period=every or None, enable_async_checkpointing=True
    )
    made = ocp.CheckpointManager((run / "checkpoints").absolute(), options=options)
    try:
        yield made
    except ProcessLost:
        raise  # closing would wait for the process that is gone
    except BaseException:
        made.close()
        raise
    made.close()


def save(checkpoints: ocp.CheckpointManager, state, statistics, text_statistics, metadata: dict) -> None:
    """Writes a checkpoint of `state.step` in the background; a step that is already there is left alone."""
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    parts = _parts(state) | {"statistics": {"data": statistics, "text": text_statistics}}
    digests = {"metadata": _text_digest(metadata)} | {name: digest(part) for name, part in parts.items()}
    metadata = metadata | {"digests": digests}
    arguments = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
    checkpoints.save(step, args=ocp.args.Composite(**arguments, metadata=ocp.args.JsonSave(metadata)))


def _parts(state: TrainState) -> dict[str, Any]:
    return {"networks": state.replace(opt_state=()), "optimiser": state.opt_state}


def find(path: str | Path) -> tuple[Path, int]:
    """The run folder and step that a path names: a run, its `checkpoints` folder, or one step in it.

    Raises:
      UserError: nothing there, or no finished checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such run or checkpoint; `llmdpd train --out={path}` makes one")
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    run = path.parent if path.name == "checkpoints" else path
    if not finished(run):
        raise UserError(f"{run}: holds no finished checkpoint (looked in {run / 'checkpoints'})")
    return run, finished(run)[-1]


def finished(run: Path) -> list[int]:
    """The steps of a run folder's finished checkpoints, in order."""
    folder = run / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def load(path: str | Path, optimiser: bool = False) -> Checkpoint:
    """Loads the newest checkpoint of a run, or the one named.

    Args:
      optimiser: with its state, which only resuming needs.

    Raises:
      UserError: missing, damaged or foreign checkpoint; the message names it, and the newest one before it that is
        whole. None is taken in its place: the updates since would be lost unnoticed.
    """
    run, step = find(path)
    try:
        return _read(run, step, optimiser)
    except _Damaged as error:
        raise UserError(f"{error}. {_what_is_left(run, step)}") from error


class _Damaged(UserError):
    """A checkpoint that is there and cannot be used."""


def _what_is_left(run: Path, step: int) -> str:
    """What can be done without the checkpoint of this step."""
    folder = run / "checkpoints"
    for older in reversed([other for other in finished(run) if other < step]):
        with contextlib.suppress(_Damaged):
            _read(run, older, optimiser=True)
            return (
                f"The checkpoint of update {older} is whole: name it ({folder / str(older)}), or go on from it with: "
                f"rm -r {folder / str(step)} && llmdpd train --resume={run}"
            )
    return f"No older checkpoint of the run is whole; to train it anew: rm -r {folder} && llmdpd train --resume={run}"


def _read(run: Path, step: int, optimiser: bool) -> Checkpoint:
    """The checkpoint of a step. Raises `_Damaged`, or UserError if it is of another version."""
    folder = run / "checkpoints" / str(step)
    reader = ocp.CheckpointManager((run / "checkpoints").absolute())
    try:
        metadata = reader.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())).metadata
    except Exception as error:
        raise _Damaged(f"{folder}: damaged or not written by llmdpd: {_first_line(error)}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise UserError(f"{folder}: not a checkpoint of this version of llmdpd_jax (format {FORMAT} expected)")
    expected = metadata.pop("digests", {})
    if _text_digest(metadata) != expected.get("metadata"):
        raise _Damaged(f"{folder}: damaged: metadata are not what was saved, by their hash")
    config = from_json(metadata["config"], str(folder))
    agent = make_agent(config, metadata["observation_size"], metadata["action_size"])
    sizes = metadata["observation_size"], metadata["action_size"], metadata["llm_width"], metadata["text_width"]
    tuning = unflatten_dict(
        {path: jax.ShapeDtypeStruct(shape, jax.numpy.float32) for path, shape in metadata["tuning"].items()}, sep="/"
    )
    state = jax.eval_shape(partial(initial_state, agent, metadata), jax.random.key(0), tuning)
    template = _parts(state) | {"statistics": _statistics_template(*sizes)}
    if not optimiser:
        template.pop("optimiser")
    arguments = {name: ocp.args.StandardRestore(_on_this_device(part)) for name, part in template.items()}
    try:
        restored = reader.restore(step, args=ocp.args.Composite(**arguments))
    except Exception as error:
        raise _Damaged(f"{folder}: damaged, or its networks differ from its config: {_first_line(error)}") from error
    finally:
        reader.close()
    parts = {name: jax.tree.map(jax.numpy.asarray, restored[name]) for name in template}
    for name, part in parts.items():
        if digest(part) != expected.get(name):
            raise _Damaged(f"{folder}: damaged: {name} is not what was saved, by its hash")
    state = parts["networks"].replace(opt_state=parts.get("optimiser", ()))
    statistics = parts["statistics"]
    return Checkpoint(agent, config, state, statistics["data"], statistics["text"], metadata, folder)


def _on_this_device(template: Any) -> Any:
    """The template with the default device for a place: a checkpoint is read whatever devices wrote it.

    Of several processes each reads all of it, to NumPy arrays: Orbax has no other way to make arrays that are one
    process's own.
    """
    if jax.process_count() > 1:
        return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
    here = jax.numpy.zeros(()).sharding
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template)


def _statistics_template(observation_size: int, action_size: int, llm_width: int, text_width: int) -> dict:
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jax.numpy.float32)

    o, a, d, k = observation_size, action_size, llm_width, text_width
    return {
        "data": Statistics(array(o), array(o), array(a), array(a), array(), array()),
        "text": TextStatistics(array(d), array(d), array(d, k), array()),
    }


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
