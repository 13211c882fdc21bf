"""What a training run is given: data, descriptions and settings, with everything that can be wrong found beforehand."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llmdpd_jax.agents.diffusion_ql import STUDENT, TrainState
from llmdpd_jax.config import from_json
from llmdpd_jax.data.episode_files import EpisodeFiles, open_episode_files
from llmdpd_jax.data.store import SplitData, load_split, statistics
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.encoder import TextEncoder, encoder_settings
from llmdpd_jax.models.llm.tuning import FrozenLLM, init_tuning, tunes_llm
from llmdpd_jax.models.llm.weights import cache_folder
from llmdpd_jax.parallel import is_leader, leader_first
from llmdpd_jax.prompts.cache import cached_prompts
from llmdpd_jax.prompts.table import TextTable, make_table, normalise_table, text_statistics
from llmdpd_jax.tasks.manifest import TaskSplit, load_manifest, require_split
from llmdpd_jax.training import checkpoint
from llmdpd_jax.types import Array, Statistics, TextStatistics


@dataclass(frozen=True)
class Given:
    """What all updates of a run are made from."""

    config: Any  # ConfigDict, automatic fields resolved
    data: SplitData | EpisodeFiles  # in memory, or on disk to be streamed
    units: Statistics
    texts: TextTable
    text_units: TextStatistics
    encoder: TextEncoder
    llm: FrozenLLM | None  # the one that is tuned, if any is
    tuning: dict  # what is trained of it at first
    teacher: checkpoint.Checkpoint | None
    about_data: Mapping[str, Any]  # `manifest` of the checkpoints' metadata

    @property
    def llm_is_divided(self) -> bool:
        """Whether an LLM is tuned that is too large for a copy on each device."""
        return self.llm is not None and self.encoder.is_divided

    def metadata(self, seed: int) -> dict:
        """What the checkpoints of the run of a seed say of themselves."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return checkpoint.make_metadata(
            config, self.units, self.text_units, self.encoder.identity, self.tuning, dict(self.about_data)
        )


def prepare(config) -> Given:
    """Reads the train tasks' data and descriptions, and nothing of other tasks.

    Raises:
      UserError: anything in manifest, data or weights that training could stumble over later.
    """
    manifest = load_manifest(config.data.manifest)
    split = require_split(manifest, "train")
    check_descriptions(split)
    if config.data.streaming:
        with leader_first("episode files"):
            folder = Path(config.data.stream_cache or cache_folder() / "episodes")
            data = open_episode_files(split, folder, progress=is_leader())
    else:
        data = load_split(manifest, "train", progress=is_leader())
    check_chunk(config.agent.chunk, data)
    encoder = TextEncoder(encoder_settings(config.text))
    teacher = find_teacher(config, data, encoder) if config.train.distill_from else None
    with leader_first("descriptions"):
        texts, text_units = read_descriptions(encoder, data.split.tasks, teacher and teacher.text_statistics)
    config = config.copy_and_resolve_references()
    if config.agent.discount == 0.0:
        config.agent.discount = automatic_discount(data.lengths)
    if config.evaluation.sampler == "auto":
        config.evaluation.sampler = STUDENT if config.agent.policy_improvement == "student" else "ddim"
    llm, tuning = None, {}
    if tunes_llm(config):
        key = jax.random.fold_in(run_keys(config.seed)[0], 4)  # none of those that `Agent.init` splits it into
        texts, llm, tuning = tune_llm(config, encoder, data.split.tasks, texts, text_units, key)
    if config.data.streaming:
        units, digest = data.statistics, data.digest
    else:
        units, digest = statistics(data), checkpoint.digest(data.store)
    if config.data.return_temperature:
        data = data.weighted(config.data.return_temperature)
    units = teacher.statistics if teacher else units
    about_data = {"family": manifest.family, "horizon": manifest.horizon, "digest": digest}
    about_data["descriptions"] = descriptions_digest(data.split.tasks)
    return Given(config, data, units, texts, text_units, encoder, llm, tuning, teacher, about_data)


def run_keys(seed: int) -> tuple[Array, Array]:
    """The keys of a run: of its first parameters, and of its updates."""
    key_init, key_run = jax.random.split(jax.random.key(seed))
    return key_init, key_run


def automatic_discount(lengths: np.ndarray) -> float:
    """1 - 2 / (mean episode length), within [0.9, 0.99]: values look as far ahead as an episode still lasts on average.

    lengths [E], in steps.
    """
    return float(np.clip(1.0 - 2.0 / np.mean(lengths), 0.9, 0.99))


def check_descriptions(split: TaskSplit) -> None:
    """Raises UserError unless every task says what it is."""
    for task in split.tasks:
        if not task.descriptions:
            raise UserError(
                f'{split.where}: task {task.name!r} has no "descriptions"; each train task needs at least one'
            )


def check_chunk(chunk: int, data: SplitData | EpisodeFiles) -> None:
    """Raises UserError unless a chunk of actions fits into every episode."""
    lengths = data.lengths
    shortest = int(np.argmin(lengths))
    if chunk > lengths[shortest]:
        task = data.split.tasks[int(data.task_id[shortest])]
        raise UserError(
            f"agent.chunk: {chunk} is more than the {lengths[shortest]} steps of the shortest episode, of task "
            f"{task.name!r} ({task.source}); choose at most {lengths[shortest]}"
        )


def read_descriptions(
    encoder: TextEncoder, tasks, units: TextStatistics | None = None
) -> tuple[TextTable, TextStatistics]:
    """Every description of the tasks in the networks' units, and those units; None: such as suit the descriptions."""
    descriptions = [d for task in tasks for d in task.descriptions]
    prompts = cached_prompts(encoder, descriptions, cache_folder() / "embeddings", progress=True)
    table = make_table(prompts, [len(task.descriptions) for task in tasks])
    units = text_statistics(table) if units is None else units
    return normalise_table(units, table), units


def tune_llm(config, encoder: TextEncoder, tasks, texts: TextTable, units: TextStatistics, key: Array):
    """For an LLM that is tuned: the table with what it reads for its states, its weights, and what is trained of it."""
    distinct = dict.fromkeys(encoder.read(d).text for task in tasks for d in task.descriptions)
    llm = FrozenLLM(replace(encoder.config, remat=True, lora_rank=config.text.lora_rank), encoder.params, units)
    inputs = jax.tree.map(jnp.asarray, encoder.llm_inputs(list(distinct)))
    return texts.replace(states=inputs), llm, init_tuning(llm.config, config.text.soft_tokens, key)


def find_teacher(config, data, encoder: TextEncoder) -> checkpoint.Checkpoint:
    """The policy that a student is distilled from.

    Raises:
      UserError: nothing there, or it is of other sizes, another LLM or other networks than the config says.
    """
    teacher, path = checkpoint.load(config.train.distill_from), config.train.distill_from
    sizes = {"observations": "observation_size", "actions": "action_size"}
    for what, name in sizes.items():
        if teacher.metadata[name] != getattr(data, name):
            raise UserError(
                f"train.distill_from: {path} is of {what} of size {teacher.metadata[name]}, the data of size "
                f"{getattr(data, name)}"
            )
    if teacher.metadata["text_encoder"] != encoder.identity:
        raise UserError(f"train.distill_from: {path} was trained with another LLM, or reads texts in another way")
    if teacher.config.agent.chunk != config.agent.chunk:
        raise UserError(
            f"train.distill_from: {path} acts by chunks of {teacher.config.agent.chunk}; agent.chunk is "
            f"{config.agent.chunk} and must be the same"
        )
    for section in ("model", "diffusion"):
        if teacher.config[section] != config[section]:
            raise UserError(f"train.distill_from: {path} has other networks; both configs need the same {section}")
    return teacher


def descriptions_digest(tasks) -> str:
    """SHA-256 of the descriptions of tasks, in order."""
    return hashlib.sha256(json.dumps([task.descriptions for task in tasks]).encode()).hexdigest()


def check_resumed(found: checkpoint.Checkpoint, given: Given, run: Path) -> None:
    """Makes sure that a run goes on with what it began with.

    Raises:
      UserError: its data, its descriptions, the LLM, or what its states are measured in are not what they were.
    """
    manifest, before = given.config.data.manifest, found.metadata["manifest"]
    if before["digest"] != given.about_data["digest"]:
        raise UserError(f"{manifest}: the data are not those that {run} was trained on")
    # Checkpoints of earlier versions do not know their descriptions.
    if before.get("descriptions", given.about_data["descriptions"]) != given.about_data["descriptions"]:
        raise UserError(f"{manifest}: the descriptions of the train tasks are not those that {run} was trained on")
    if found.metadata["text_encoder"] != given.encoder.identity:
        raise UserError(f"text.source: {given.config.text.source!r} is not the LLM that {run} was trained with")
    pairs = zip(jax.tree.leaves(found.text_statistics), jax.tree.leaves(given.text_units), strict=True)
    if not all(np.allclose(old, new, rtol=1e-3, atol=1e-3) for old, new in pairs):
        raise UserError(
            f"{run}: this machine finds other axes of the LLM's states than the run began with; go on where it began"
        )


def taught(state: TrainState, teacher: TrainState, parameterisation: str) -> TrainState:
    """A fresh state in which all but the student is the teacher as it acts, and its critic.

    What a denoiser of clean actions says of pure noise is the first step of its chain: there the student starts.
    """
    known = {**{name: teacher.params[name] for name in state.params if name in teacher.params}, **teacher.ema}
    known.pop(STUDENT, None)
    if parameterisation == "x0":
        known[STUDENT] = known["denoiser"]
    # Copies, for the state is donated and may hold no array twice.
    return state.replace(
        params=jax.tree.map(jnp.copy, {**state.params, **known}),
        target_critic=teacher.target_critic,
        ema={name: jax.tree.map(jnp.copy, known.get(name, state.ema[name])) for name in state.ema},
    )


def check_run_folder(config, run: Path) -> None:
    """Makes sure that the folder can hold this run: it is new, or holds a run of this very config. Writes nothing.

    Raises:
      UserError: the folder holds another run, or is a file.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: is a file; name a folder with --out")
    file = run / "config.json"
    if file.exists():
        old = from_json(file.read_text(), str(file))
        if old != config:
            flat_old, flat_new = (dict(_flatten(c.to_dict())) for c in (old, config))
            changed = [f"{k}: {flat_old[k]!r} -> {flat_new[k]!r}" for k in flat_new if flat_old[k] != flat_new[k]]
            raise UserError(f"{run}: holds a run with another config ({'; '.join(changed)}); choose another --out")


def _flatten(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        yield from _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def check_devices(config, mesh: Mesh) -> None:
    """Raises UserError unless batch and store can be divided among the devices."""
    devices, groups, parts = mesh.size, config.data.groups, config.data.parts
    if groups % math.lcm(devices, parts):
        raise UserError(
            f"data.groups: {groups} groups cannot be divided evenly among {devices} devices and {parts} parts of the "
            f"data (data.parts); choose a multiple of {math.lcm(devices, parts)}, or fewer devices with --devices"
        )
    if parts > 1 and parts % devices:
        raise UserError(
            f"data.parts: {parts} parts cannot be divided among {devices} devices; choose a multiple of that"
        )
    if config.train.form == "pmap" and (parts > 1 or config.data.streaming):
        raise UserError("train.form: pmap copies the data to each device; choose shard_map for data.parts or streaming")
    if config.data.streaming and parts > 1:
        raise UserError("data.parts: streamed data are not held by any device, so there is nothing to divide")
    if jax.process_count() > 1 and devices < jax.device_count():
        raise UserError("--devices: several processes use all their devices; leave it out")
