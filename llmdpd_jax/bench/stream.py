"""How fast training goes when its data are streamed from files, beside the same training from the device store.

Both sides read the same logged data of noise and run the whole method, with both prompts, at the sizes of the default
config but for 64 groups of 4 transitions, which ask more of a stream than 32 of 8.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.agents.diffusion_ql import TrainState
from llmdpd_jax.agents.llmdpd import Agent, make_agent
from llmdpd_jax.bench.cost import whole_inputs
from llmdpd_jax.bench.machine import device_name, held_memory, peak_memory
from llmdpd_jax.bench.rows import Report, Row
from llmdpd_jax.bench.workers import Worker, take_turns
from llmdpd_jax.config import default_config
from llmdpd_jax.data.episode_files import open_episode_files
from llmdpd_jax.data.normalise import normalise_batch
from llmdpd_jax.data.sampler import BatchSizes, sample_batch
from llmdpd_jax.data.store import load_tasks, statistics
from llmdpd_jax.data.streaming import BatchStream
from llmdpd_jax.tasks.manifest import TaskEntry, TaskSplit
from llmdpd_jax.types import Array, Batch, Statistics, TextPrompt

OBSERVATION, ACTION = 17, 6
TASKS, EPISODES, STEPS = 40, 100, 250  # of the data: a million steps
GROUPS, GROUP_SIZE = 64, 4
UPDATES, CALL = 60, 20  # of a turn, and of one compiled call of it
STORE, STREAM = "device store", "streamed"


def write_noise(folder: Path, tasks: int, episodes: int, steps: int) -> list[str]:
    """A D4RL file of noise for each task; returns their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for task in range(tasks):
        paths.append(str(folder / f"{task}.hdf5"))
        count = episodes * steps
        with h5py.File(paths[-1], "w") as file:
            file["observations"] = file["next_observations"] = rng.standard_normal((count, OBSERVATION), np.float32)
            file["actions"] = rng.uniform(-1, 1, (count, ACTION)).astype(np.float32)
            file["rewards"] = rng.standard_normal(count, np.float32)
            file["terminals"] = np.zeros(count, bool)
            file["timeouts"] = np.arange(count) % steps == steps - 1
    return paths


def noise_split(paths: Sequence[str]) -> TaskSplit:
    """Train tasks of these files."""
    return TaskSplit("train", tuple(TaskEntry(path, "train", path) for path in paths), "benchmark")


def make_call(agent: Agent, draw: Callable[[Array, Array], Batch]) -> Callable:
    """`(state, source, statistics, text, key) -> state`: CALL updates, compiled. `draw(source, i, key)`: batch i."""

    @partial(jax.jit, donate_argnums=0)
    def call(state: TrainState, source, statistics: Statistics, text: TextPrompt, key: Array) -> TrainState:
        def body(i: Array, state: TrainState) -> TrainState:
            key_batch, key_update = jax.random.split(jax.random.fold_in(key, state.step))
            batch = normalise_batch(statistics, draw(source, i, key_batch))
            return agent.update(state, batch, text, key_update)[0]

        return jax.lax.fori_loop(0, CALL, body, state)

    return call


class Training:
    """One side: the method on the data of some files."""

    def __init__(self, paths: list[str], cache: str | None):
        """cache: where the streamed copy is; None: the data are held in the device store."""
        config = default_config()
        config.data.groups, config.data.group_size = GROUPS, GROUP_SIZE
        sizes = BatchSizes(GROUPS, GROUP_SIZE, config.data.prompt_length)
        agent = make_agent(config, OBSERVATION, ACTION)
        batch, self.text = whole_inputs(config, OBSERVATION, ACTION)
        # Measured before anything is compiled, which takes more memory than the data do here.
        before, self.key, self.stream = peak_memory(), jax.random.key(1), None
        if cache is None:
            data = load_tasks(noise_split(paths), progress=False)
            self.statistics, self.store = statistics(data), jax.tree.map(jnp.asarray, data.store)
            self.call = make_call(
                agent, lambda store, i, key: sample_batch(store, jax.random.split(key, sizes.groups), sizes)
            )
        else:
            files = open_episode_files(noise_split(paths), Path(cache), progress=False)
            self.statistics, self.stream = files.statistics, BatchStream(files, sizes, seed=0)
            self.stream.take(CALL)
            self.call = make_call(agent, lambda batches, i, key: jax.tree.map(lambda x: x[i], batches))
        self.memory = peak_memory() - before
        self.held: list[int | None] = []  # after each turn
        self.state = jax.jit(agent.init)(jax.random.key(0), batch, self.text)

    def facts(self) -> dict:
        """The device, by how much the data raised the peak of host memory, and what is held after each turn; in MB."""
        held = [round(size / 1e6) for size in self.held if size is not None]
        return {"device": device_name(jax.devices()[0]), "memory": self.memory / 1e6, "held": held}

    def run(self) -> None:
        """Updates of a turn: the next batches are drawn while the device computes."""
        for _ in range(UPDATES // CALL):
            source = self.store if self.stream is None else jax.device_put(self.stream.take(CALL))
            self.state = self.call(self.state, source, self.statistics, self.text, self.key)
        jax.block_until_ready(self.state)
        self.held.append(held_memory())

    def result(self, layer: None) -> np.ndarray:
        """How many updates were made."""
        return np.asarray(self.state.step)


def run(cpus: Sequence[int], repeats: int, tasks: int = TASKS, episodes: int = EPISODES, steps: int = STEPS) -> Report:
    """Updates/s of streaming, and what the data take of the host's memory, beside those of the device store."""
    name = f"stream/{tasks * episodes * steps / 1e6:.3g} million steps, batch {GROUPS} x {GROUP_SIZE}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = write_noise(folder, tasks, episodes, steps)
        cache = folder / "cache"
        files = open_episode_files(noise_split(paths), cache)
        size = sum(path.stat().st_size for path in files.folder.iterdir()) / 1e6
        workers = {
            side: stack.enter_context(Worker(f"{name}, {side}", Training, {"paths": paths, "cache": at}, cpus))
            for side, at in {STREAM: str(cache), STORE: None}.items()
        }
        seconds, _ = take_turns(workers, repeats, peak=False)
        facts = {side: worker.ask(do="facts") for side, worker in workers.items()}
    shared = {"threads": len(cpus), "device": facts[STORE]["device"], "reference": STORE}
    figures = {
        "updates": ({side: UPDATES / seconds[side] for side in seconds}, "updates/s"),
        "host memory": ({side: facts[side]["memory"] for side in seconds}, "MB"),
    }
    rows = [
        Row(f"{name}: {what}", value=of[STREAM], unit=unit, reference_value=of[STORE], **shared)
        for what, (of, unit) in figures.items()
    ]
    notes = [f"The streamed copy has {size:.0f} MB."]
    if held := facts[STREAM]["held"]:
        held = ", ".join(map(str, held))
        notes.append(f"After each turn of {UPDATES} updates the process that streams holds {held} MB in all.")
    return Report(tuple(rows), tuple(notes))
