"""The training run: load, compile one call of many updates, log, checkpoint, resume. All files and clocks are here."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmdpd_jax.agents.diffusion_ql import STUDENT, TrainState
from llmdpd_jax.agents.llmdpd import Agent, make_agent
from llmdpd_jax.config import check_config, from_json, to_json
from llmdpd_jax.data.normalise import normalise_batch
from llmdpd_jax.data.sampler import sample_batch
from llmdpd_jax.data.store import SplitData, load_split, statistics
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.encoder import TextEncoder, encoder_settings
from llmdpd_jax.models.llm.tuning import FrozenLLM, init_tuning
from llmdpd_jax.models.llm.weights import cache_folder
from llmdpd_jax.prompts.cache import cached_prompts
from llmdpd_jax.prompts.table import TextTable, make_table, normalise_table, sample_text, text_statistics
from llmdpd_jax.tasks.manifest import TaskSplit, load_manifest, require_split
from llmdpd_jax.training import checkpoint
from llmdpd_jax.training.interrupt import Interrupt, console
from llmdpd_jax.training.metrics import MetricsWriter
from llmdpd_jax.types import Array, Statistics, Store, TextStatistics


def make_train_call(
    agent: Agent,
    groups: int,
    group_size: int,
    prompt_length: int,
    chunk: int = 1,
    discount: float = 1.0,
    sharding: Sharding | None = None,
) -> Callable:
    """The compiled call of many updates: batches are drawn on the device, nothing goes through the host.

    Args:
      groups, group_size, prompt_length, chunk, discount: of batches, as `sample_batch` takes them.
      sharding: of the state and the metrics that come back, which must be that of the state that is given; None: the
        default device.

    Returns:
      `(state, store, statistics, texts, llm, key, count) -> (state, metrics)`: `count` updates (traced, so that a
      shorter last call compiles nothing) and the means of their metrics. The state is donated. The key of an update
      depends only on the run's key and the step, so a resumed run draws the same batches. `llm` is the one that is
      tuned, None if it is frozen.
    """

    def one_update(
        state: TrainState, store: Store, statistics: Statistics, texts: TextTable, llm: FrozenLLM | None, key: Array
    ):
        key_batch, key_text, key_update = jax.random.split(jax.random.fold_in(key, state.step), 3)
        sizes = groups, group_size, prompt_length, chunk, discount
        batch = normalise_batch(statistics, sample_batch(store, key_batch, *sizes))
        return agent.update(state, batch, sample_text(texts, key_text, batch.task_id), key_update, llm)

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def train_call(
        state: TrainState,
        store: Store,
        statistics: Statistics,
        texts: TextTable,
        llm: FrozenLLM | None,
        key: Array,
        count: Array,
    ):
        def body(_, carry):
            state, sums = carry
            state, metrics = one_update(state, store, statistics, texts, llm, key)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(one_update, state, store, statistics, texts, llm, key)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, sums = jax.lax.fori_loop(0, count, body, (state, zeros))
        return state, jax.tree.map(lambda x: x / count, sums)

    return train_call


def automatic_discount(lengths: np.ndarray) -> float:
    """1 - 2 / (mean episode length), within [0.9, 0.99]: values look as far ahead as an episode still lasts on average.

    lengths [E], in steps.
    """
    return float(np.clip(1.0 - 2.0 / np.mean(lengths), 0.9, 0.99))


def store_digest(store: Store) -> str:
    """SHA-256 over every array of the store: two stores with the same digest hold the same data."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(store):
        digest.update(f"{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def check_descriptions(split: TaskSplit) -> None:
    """Raises UserError unless every task says what it is."""
    for task in split.tasks:
        if not task.descriptions:
            raise UserError(
                f'{split.where}: task {task.name!r} has no "descriptions"; each train task needs at least one'
            )


def check_chunk(chunk: int, data: SplitData) -> None:
    """Raises UserError unless a chunk of actions fits into every episode."""
    lengths = np.asarray(data.store.lengths)
    shortest = int(np.argmin(lengths))
    if chunk > lengths[shortest]:
        task = data.split.tasks[int(data.store.task_id[shortest])]
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


def taught(state: TrainState, teacher: TrainState) -> TrainState:
    """A fresh state in which all but the student is the teacher as it acts, and its critic."""
    known = {**{name: teacher.params[name] for name in state.params if name in teacher.params}, **teacher.ema}
    known.pop("student", None)
    return state.replace(
        params={**state.params, **known},
        target_critic=teacher.target_critic,
        # Copies, for the state is donated and may hold no array twice.
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


def train(config, run: str | Path) -> Path:
    """Trains to `config.train.steps`, resuming if the run folder already holds a checkpoint of this config.

    Only the train tasks' data and descriptions are opened.

    Args:
      config: as given by the user; automatic fields are resolved here.
      run: folder for config.json, metrics.csv, TensorBoard events and checkpoints.

    Returns:
      The run folder.

    Raises:
      UserError: anything in config, manifest, data or weights that training could stumble over later, before it starts;
        a loss that is no longer finite.
      KeyboardInterrupt: after SIGINT or SIGTERM, with the checkpoint written.
    """
    run = Path(run)
    # Everything that can be wrong is found here, cheap checks first, before anything is written.
    check_config(config)
    check_run_folder(config, run)
    manifest = load_manifest(config.data.manifest)
    check_descriptions(require_split(manifest, "train"))
    data = load_split(manifest, "train")
    check_chunk(config.agent.chunk, data)
    encoder = TextEncoder(encoder_settings(config.text))
    teacher = find_teacher(config, data, encoder) if config.train.distill_from else None
    texts, text_units = read_descriptions(encoder, data.split.tasks, teacher and teacher.text_statistics)

    given, config = config, config.copy_and_resolve_references()
    if config.agent.discount == 0.0:
        config.agent.discount = automatic_discount(np.asarray(data.store.lengths))
    if config.evaluation.sampler == "auto":
        config.evaluation.sampler = STUDENT if config.agent.policy_improvement == "student" else "ddim"
    agent = make_agent(config, data.observation_size, data.action_size)
    units, digest = teacher.statistics if teacher else statistics(data), store_digest(data.store)
    key_init, key_run = jax.random.split(jax.random.key(config.seed))
    llm, tuning = None, {}
    if config.text.lora_rank or config.text.soft_tokens:
        key_tuning = jax.random.fold_in(key_init, 1)
        texts, llm, tuning = tune_llm(config, encoder, data.split.tasks, texts, text_units, key_tuning)
    metadata = checkpoint.make_metadata(
        config,
        units,
        text_units,
        encoder.identity,
        tuning,
        {"family": manifest.family, "horizon": manifest.horizon, "digest": digest},
    )

    run.mkdir(parents=True, exist_ok=True)
    if not (run / "config.json").exists():
        (run / "config.json").write_text(to_json(given))
    with checkpoint.manager(run, config.train.keep_checkpoints) as checkpoints:
        if checkpoints.latest_step() is None:
            state = jax.jit(partial(checkpoint.initial_state, agent, metadata))(key_init, tuning)
            state = state if teacher is None else taught(state, teacher.state)
        else:
            restored = checkpoint.load(run)
            if restored.metadata["manifest"]["digest"] != digest:
                raise UserError(f"{config.data.manifest}: the data are not those that {run} was trained on")
            state = restored.state
        store, sharding = data.store, None
        if llm is not None:  # its weights may be divided among devices: all of them take part
            sharding = encoder.replicated
            state, store, units, texts = jax.device_put((state, store, units, texts), sharding)
        sizes = config.data.groups, config.data.group_size, config.data.prompt_length
        train_call = make_train_call(agent, *sizes, config.agent.chunk, config.agent.discount, sharding)

        def save(state):
            checkpoint.save(checkpoints, state, units, text_units, metadata)

        run_updates(
            lambda state, count: train_call(state, store, units, texts, llm, key_run, count),
            state,
            config.train,
            run,
            save,
        )
    return run


def run_updates(call: Callable, state: TrainState, settings, run: Path, save: Callable[[TrainState], None]) -> None:
    """Calls until `settings.steps` updates are done; logs every call, saves at checkpoints, at the end and on a signal.

    Metrics of a call are fetched while the next one runs, so the device never waits for the host between checkpoints.
    """
    step, pending = int(state.step), None
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with (
        MetricsWriter(run, step) as writer,
        Progress(*columns, console=console) as bar,
        Interrupt("a checkpoint") as interrupt,
    ):
        task = bar.add_task("train", total=settings.steps, completed=step, rate="", losses="compiling")

        def fetch(pending):
            step, count, metrics, started = pending
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            rate = count / (time.monotonic() - started)
            writer.write(step, metrics)
            bad = [name for name, value in metrics.items() if not np.isfinite(value)]
            if bad:
                raise UserError(
                    f"{run}: {', '.join(bad)} not finite between updates {step - count} and {step}; the last "
                    "checkpoint is intact. Try a smaller optimiser.learning_rate or agent.eta"
                )
            losses = " ".join(f"{n.removeprefix('loss/')} {metrics[n]:.3g}" for n in metrics if n.startswith("loss/"))
            bar.update(task, completed=step, rate=f"{rate:.0f}/s", losses=losses)

        while step < settings.steps and interrupt.signal is None:
            until_checkpoint = settings.checkpoint_every - step % settings.checkpoint_every
            count = min(settings.log_every, until_checkpoint, settings.steps - step)
            started = time.monotonic()
            state, metrics = call(state, jnp.asarray(count, jnp.int32))
            step += count
            if pending is not None:
                fetch(pending)
            pending = (step, count, metrics, started)
            if step % settings.checkpoint_every == 0 or step == settings.steps:
                fetch(pending)  # a state that is not finite is never saved
                pending = None
                save(state)
        if pending is not None:
            fetch(pending)
        if interrupt.signal is not None and step < settings.steps:
            save(state)
            raise KeyboardInterrupt(f"stopped at update {step}; go on with: llmdpd train --resume={run}")
