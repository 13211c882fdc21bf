"""The training run: one compiled call of many updates, logged, checkpointed, resumed. All files and clocks are here."""

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmdpd_jax.agents.diffusion_ql import TrainState
from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.config import check_config, to_json
from llmdpd_jax.data.store import divide_store
from llmdpd_jax.data.streaming import BatchStream
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.tuning import tunes_llm
from llmdpd_jax.parallel import (
    DATA,
    all_alive,
    any_process,
    assemble,
    copied,
    data_mesh,
    divided,
    failing_together,
    is_leader,
    place,
    wait_for_all,
)
from llmdpd_jax.training import checkpoint
from llmdpd_jax.training.interrupt import Interrupt, console
from llmdpd_jax.training.limits import (
    OutOfMemory,
    describe_sizes,
    disk_for_runs,
    memory_for_preparation,
    memory_for_training,
)
from llmdpd_jax.training.lock import check_unlocked, run_lock
from llmdpd_jax.training.metrics import MetricsWriter
from llmdpd_jax.training.nonfinite import BATCH_FILE, describe_batch, write_batch
from llmdpd_jax.training.preparation import (
    Given,
    check_devices,
    check_resumed,
    check_run_folder,
    prepare,
    run_keys,
    taught,
)
from llmdpd_jax.training.step import FIRST_BAD, SKIPPED, batch_sizes, compiler_options, join_metrics, make_train_call
from llmdpd_jax.types import Store


def train(config, run: str | Path, devices: int = 0, seeds: int = 1) -> list[Path]:
    """Trains to `config.train.steps`, resuming if the run folder already holds a checkpoint of this config.

    Only the train tasks' data and descriptions are opened. Batches are divided among the devices of all processes.

    Args:
      config: as given by the user; automatic fields are resolved here.
      run: folder for config.json, metrics.csv, TensorBoard events and checkpoints.
      devices: how many to use, 0 is all. Their number changes nothing but the order of sums.
      seeds: runs of so many seeds, from `config.seed` on. Each has a folder of its own, `run/seed-<n>`, as if it had
        been trained alone. They learn side by side in one compiled call, or, where memory does not suffice for that,
        the LLM is tuned or the data are streamed, one after another.

    Returns:
      The run folder, or those of the seeds.

    Raises:
      UserError: anything in config, manifest, data or weights that training could stumble over later, before it starts;
        an update that is not finite, unless `train.on_nonfinite` leaves it out;
        another process that trains in the folder; no memory or no room on disk left.
      KeyboardInterrupt: after SIGINT or SIGTERM, with the checkpoint written.
    """
    # Everything that can be wrong is found here, cheap checks first, before anything is written.
    check_config(config)
    run = Path(run)
    runs = seed_runs(config, run, seeds)
    for folder, one in runs.items():
        check_run_folder(one, folder)
        check_unlocked(folder)
    mesh = data_mesh(devices)
    if not tunes_llm(config):
        check_devices(config, mesh)
    if len(runs) == 1 or not (tunes_llm(config) or config.data.streaming or out_of_step(runs)):
        try:
            train_together(run, runs, runs, mesh)
            return list(runs)
        except OutOfMemory as error:
            # Processes that work as one may not all have run out of it.
            if len(runs) == 1 or jax.process_count() > 1:
                raise
            console.print(f"{error}\n{len(runs)} seeds do not fit side by side: one after another", markup=False)
    for folder, one in runs.items():
        train_together(run, runs, {folder: one}, mesh)
    return list(runs)


def train_together(run: Path, runs: dict[Path, Any], now: dict[Path, Any], mesh: Mesh) -> None:
    """Trains some of the runs, side by side.

    Args:
      run: the folder that was named.
      runs: every seed's folder and config, as `seed_runs` gives them; all of their folders are made.
      now: those that are trained.
    """
    config = next(iter(now.values()))
    with memory_for_preparation(), failing_together("preparing"):
        given = prepare(config)
        if not given.llm_is_divided:  # else all devices work on the same groups
            check_devices(config, mesh)
        store = None if config.data.streaming else divide_store(given.data.store, config.data.parts)
    with disk_for_runs(run, list(now)):
        make_folders(runs)
        with contextlib.ExitStack() as stack:
            for folder in now:
                stack.enter_context(run_lock(folder))
            train_given(given, store, run, now, mesh)


def train_given(given: Given, store: Store | None, run: Path, runs: dict[Path, Any], mesh: Mesh) -> None:
    """The runs of all seeds, once all that can be wrong was looked at and their folders are there.

    Args:
      store: in parts; None: batches are streamed.
      run: the folder that was named.
      runs: the folder and config of each.
    """
    config = given.config
    # An LLM that is too large for a copy on each device is divided among them, and they work on the same groups.
    axis = None if mesh.size == 1 or given.llm_is_divided else DATA
    fsdp = axis is not None and config.train.form == "fsdp"
    agent = make_agent(config, given.data.observation_size, given.data.action_size, None if fsdp else axis)
    metadata = [given.metadata(one.seed) for one in runs.values()]
    with contextlib.ExitStack() as stack:
        keep = config.train.keep_checkpoints, config.train.keep_every
        managers = [stack.enter_context(checkpoint.manager(folder, *keep)) for folder in runs]
        step = newest_common_step(managers)
        if step is None:
            first_of = partial(checkpoint.initial_state, agent, metadata[0])
            keys = [run_keys(one.seed)[0] for one in runs.values()]
            # What one device has no room for is never whole on any.
            lies = divided(mesh, jax.eval_shape(first_of, keys[0], given.tuning)) if fsdp else None
            init = jax.jit(first_of, out_shardings=lies, compiler_options=compiler_options(run_once=True))
            states = [init(key, given.tuning) for key in keys]
            if given.teacher:
                states = [taught(state, given.teacher.state, config.diffusion.parameterisation) for state in states]
        else:
            restored = [checkpoint.load(folder / "checkpoints" / str(step), optimiser=True) for folder in runs]
            check_resumed(restored[0], given, run)
            states = [one.state for one in restored]
        state, key = side_by_side(states), side_by_side([run_keys(one.seed)[1] for one in runs.values()])

        def sizes_in_memory() -> str:
            places = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            inputs = places, store, *arguments, np.int32(1)
            return describe_sizes(store, state, lambda: train_call.lower(*inputs).compile())

        stack.enter_context(memory_for_training(sizes_in_memory))
        sharding = given.encoder.replicated if given.llm_is_divided else copied(mesh)
        state = place(state, divided(mesh, state) if fsdp else sharding)
        units, texts, key = place((given.units, given.texts, key), sharding)
        text_units = place(given.text_units, sharding)
        llm = given.llm if given.llm is None or given.llm_is_divided else place(given.llm, sharding)
        sizes, spec = batch_sizes(given.config), PartitionSpec()
        if config.data.streaming:
            spec = PartitionSpec(None, DATA) if axis else spec
        elif config.data.parts > 1 and axis:
            spec = PartitionSpec(DATA)
        skip = config.train.on_nonfinite == "skip"
        train_call = make_train_call(agent, sizes, mesh if axis else None, spec, config.train.form, sharding, skip)
        arguments = units, texts, llm, key
        if config.data.streaming:
            hosts = (jax.process_index(), jax.process_count()) if axis else (0, 1)
            stream = stack.enter_context(BatchStream(given.data, sizes, config.seed, hosts))
            stream.set_state({"next_update": int(np.ravel(state.step)[0])})
            where = partial(assemble, mesh=mesh, spec=spec) if axis else partial(place, sharding=sharding)
            call = partial(streamed_call, train_call, stream, where, config.data.stream_updates, arguments)
        else:
            store = place(store, NamedSharding(mesh, spec) if axis else sharding)

            def call(state, count):
                return train_call(state, store, *arguments, count)

        def save(state: TrainState) -> None:
            for i, of_run in enumerate(managers):
                one = jax.tree.map(lambda x, i=i: x[i], state) if len(runs) > 1 else state
                checkpoint.save(of_run, one, units, text_units, metadata[i])

        def explain(number: int, step: int, metrics: list[str]) -> str:
            """What was wrong with the update after `step` others of one of the runs."""
            folder, of_run = list(runs)[number], managers[number]
            batch, groups = describe_batch(given, config.seed + number, step)
            if is_leader():
                write_batch(folder, step + 1, metrics, groups)
            of_run.wait_until_finished()
            kept = of_run.latest_step()
            return (
                f"{folder}: {', '.join(metrics) or 'losses'} not finite in update {step + 1}; {batch} (all of it: "
                f"{folder / BATCH_FILE}). "
                + ("No checkpoint was written yet" if kept is None else f"The checkpoint of update {kept} is intact")
            )

        with all_alive(f"Start all of them again with: llmdpd train --resume={run}"):
            run_updates(call, state, config.train, run, list(runs), save, explain)


def seed_runs(config, run: Path, seeds: int) -> dict[Path, Any]:
    """The run folder of every seed and its config, as given: the run itself, or a folder in it for each of several."""
    if seeds < 1:
        raise UserError(f"--seeds: {seeds}; train at least one")
    if seeds == 1:
        return {run: config}
    runs = {}
    for seed in range(config.seed, config.seed + seeds):
        runs[run / f"seed-{seed}"] = one = config.copy_and_resolve_references()
        one.seed = seed
    return runs


def make_folders(runs: dict[Path, Any]) -> None:
    """Run folders that say what they are; one process makes them, all find them."""
    if is_leader():
        for folder, config in runs.items():
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "config.json").exists():
                (folder / "config.json").write_text(to_json(config))
    wait_for_all("run folders")


def side_by_side(runs: Sequence[Any]) -> Any:
    """Trees of several runs as one with leading axes [N]; that of a single run as it is."""
    return runs[0] if len(runs) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


def streamed_call(
    train_call: Callable,
    stream: BatchStream,
    where: Callable,
    room: int,
    arguments: tuple,
    state: TrainState,
    count: int,
) -> tuple[TrainState, dict]:
    """`count` updates from a stream, at most `room` of them in a compiled call: `(state, metrics)` as of one call."""
    parts, counts, left = [], [], int(count)
    while left:
        some = min(room, left)
        batches = where(stream.take(some, room))
        jax.block_until_ready(parts[-1:])  # a call that computes and one that waits: else batches would pile up
        state, part = train_call(state, batches, *arguments, np.int32(some))
        parts.append(part)
        counts.append(some)
        left -= some
    return state, join_metrics(parts, counts)


def out_of_step(runs: dict[Path, Any]) -> bool:
    """Whether there are checkpoints, but no step of which every run has one: runs that learned one after another."""
    steps = [set(checkpoint.finished(folder)) for folder in runs]
    return any(steps) and not set.intersection(*steps)


def newest_common_step(managers: Sequence) -> int | None:
    """The newest step of which every run has a checkpoint; None: there is none, or some run has not begun."""
    common = set.intersection(*(set(one.all_steps()) for one in managers))
    return max(common, default=None)


def run_updates(
    call: Callable,
    state: TrainState,
    settings,
    named: Path,
    runs: Sequence[Path],
    save: Callable[[TrainState], None],
    explain: Callable[[int, int, list[str]], str],
) -> None:
    """Calls until `settings.steps` updates are done; logs every call, saves at checkpoints, at the end and on a signal.

    Metrics of a call are fetched while the next one runs, so the device never waits for the host between checkpoints.

    Args:
      call: `(state, count) -> (state, metrics)`; state and metrics have leading axes [N] if there are several runs.
      settings: the `train` section of a config.
      named: the folder to go on with, `--resume`.
      runs: folders, of which the leader writes the metrics.
      save: writes checkpoints of a state.
      explain: `(run, step, metrics) -> message` on the update after `step` others of the run with this number, the
        first that was not finite, and on those of its metrics that were not.

    Raises:
      UserError: an update was not finite, or all updates of a call were not where such are left out.
    """
    step, pending = int(np.ravel(state.step)[0]), None
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
        contextlib.ExitStack() as stack,
        Progress(*columns, console=console, disable=not is_leader()) as bar,
        Interrupt("a checkpoint") as interrupt,
    ):
        writers = [stack.enter_context(MetricsWriter(run, step)) for run in runs] if is_leader() else []
        task = bar.add_task("train", total=settings.steps, completed=step, rate="", losses="compiling")

        def fetch(pending):
            step, count, metrics, started = pending
            metrics = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
            first_bad = metrics.pop(FIRST_BAD)
            rate = count * len(runs) / (time.monotonic() - started)
            for i, writer in enumerate(writers):
                writer.write(step, {name: float(values[i]) for name, values in metrics.items()})
            for i, first in enumerate(first_bad):
                skipped = metrics[SKIPPED][i] if SKIPPED in metrics else 0
                if first >= 0 and skipped in (0, count):
                    bad = [name for name, values in metrics.items() if not np.isfinite(values[i])]
                    hint = "Try a smaller optimiser.learning_rate or agent.eta"
                    if skipped:
                        hint = f"So it was with all updates to {step}, and leaving them out does not help. {hint}"
                    else:
                        hint += ', or train.on_nonfinite="skip" to leave such updates out'
                    raise UserError(f"{explain(i, int(first), bad)}. {hint}")
            means = {name.removeprefix("loss/"): v.mean() for name, v in metrics.items() if name.startswith("loss/")}
            losses = " ".join(f"{name} {mean:.3g}" for name, mean in means.items())
            bar.update(task, completed=step, rate=f"{rate:.0f}/s", losses=losses)

        stopped = False
        while step < settings.steps and not stopped:
            until_checkpoint = settings.checkpoint_every - step % settings.checkpoint_every
            count = min(settings.log_every, until_checkpoint, settings.steps - step)
            started = time.monotonic()
            state, metrics = call(state, np.int32(count))
            step += count
            if pending is not None:
                fetch(pending)
            pending = (step, count, metrics, started)
            if step % settings.checkpoint_every == 0 or step == settings.steps:
                fetch(pending)  # a state that is not finite is never saved
                pending = None
                save(state)
            stopped = any_process(interrupt.signal is not None)
        if pending is not None:
            fetch(pending)
        if stopped and step < settings.steps:
            save(state)
            raise KeyboardInterrupt(f"stopped at update {step}; go on with: llmdpd train --resume={named}")
