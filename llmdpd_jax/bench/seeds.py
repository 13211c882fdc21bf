"""What several seeds cost that learn side by side in one compiled call (`llmdpd train --seeds`), beside one alone.

The whole method at the sizes of the default config, on logged data of noise.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.bench.cost import whole_inputs
from llmdpd_jax.bench.machine import device_name
from llmdpd_jax.bench.rows import Report, Row
from llmdpd_jax.bench.stream import ACTION, OBSERVATION, noise_split, write_noise
from llmdpd_jax.bench.workers import Worker, take_turns
from llmdpd_jax.config import default_config
from llmdpd_jax.data.store import divide_store, load_tasks, statistics
from llmdpd_jax.prompts.table import make_table
from llmdpd_jax.training.step import batch_sizes, make_train_call

SEEDS = 5
UPDATES = 20  # of a turn, of every seed
ONE = "one seed"


class Training:
    """One side: the training of so many seeds."""

    def __init__(self, seeds: int, updates: int = UPDATES, tasks: int = 8, episodes: int = 20, steps: int = 200):
        config = default_config()
        with tempfile.TemporaryDirectory() as folder:
            data = load_tasks(noise_split(write_noise(Path(folder), tasks, episodes, steps)), progress=False)
        agent = make_agent(config, OBSERVATION, ACTION)
        batch, text = whole_inputs(config, OBSERVATION, ACTION)
        one_text = jax.tree.map(lambda x: np.asarray(x[0]), text)
        texts = jax.tree.map(jnp.asarray, make_table([one_text] * tasks, [1] * tasks))
        store = jax.tree.map(jnp.asarray, divide_store(data.store, 1))
        keys = jax.random.split(jax.random.key(0), seeds)
        states = jax.jit(jax.vmap(agent.init, in_axes=(0, None, None)))(keys, batch, text)
        # As `llmdpd train` does: a single seed has no axis of its own.
        self.state, key = (states, keys) if seeds > 1 else (jax.tree.map(lambda x: x[0], states), keys[0])
        self.inputs = store, statistics(data), texts, None, key, np.int32(updates)
        self.call = make_train_call(agent, batch_sizes(config))

    def facts(self) -> dict:
        """The device."""
        return {"device": device_name(jax.devices()[0])}

    def run(self) -> None:
        """The updates of a turn."""
        self.state, _ = self.call(self.state, *self.inputs)
        jax.block_until_ready(self.state)

    def result(self, layer: None) -> np.ndarray:
        """How many updates each seed has made."""
        return np.asarray(self.state.step)


def run(cpus: Sequence[int], repeats: int, seeds: int = SEEDS, updates: int = UPDATES) -> Report:
    """Updates/s of all seeds together beside those of one: below 1 they take longer than one after another."""
    name = f"seeds/{seeds} side by side"
    with ExitStack() as stack:
        sides = {name: seeds, ONE: 1}
        workers = {
            side: stack.enter_context(Worker(f"{name}, {side}", Training, {"seeds": count, "updates": updates}, cpus))
            for side, count in sides.items()
        }
        device = workers[ONE].ask(do="facts")["device"]
        seconds, _ = take_turns(workers, repeats, peak=False)
    rates = {side: updates * count / seconds[side] for side, count in sides.items()}
    note = f"{seeds} seeds take {seconds[name] / seconds[ONE]:.2f} times as long as one."
    return Report((Row(name, rates[name], "updates/s", len(cpus), device, ONE, rates[ONE]),), (note,))
