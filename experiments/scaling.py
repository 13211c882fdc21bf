"""What an update costs on several devices, read from the compiled program: the table of docs/scaling.md.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python experiments/scaling.py

Compiles the whole method's update at the default config's sizes (17 observations, 6 actions) for 1, 2 and 8 devices,
and prints for each what a device holds, what it computes and what crosses the devices. Nothing is run.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.bench.cost import counted_flops, whole_inputs
from llmdpd_jax.config import default_config
from llmdpd_jax.data.sampler import BatchSizes
from llmdpd_jax.parallel import DATA
from llmdpd_jax.prompts.table import TextTable
from llmdpd_jax.training.step import make_train_call
from llmdpd_jax.types import Statistics, Store

OBSERVATION, ACTION, TASKS, EPISODES, STEPS = 17, 6, 45, 100, 200
DESCRIPTIONS, TOKENS = 64, 24
GROUPS = 64  # of 8 transitions: a multiple of the devices
OPERATIONS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def abstract(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def inputs(config, agent) -> tuple:
    """State, store, statistics, texts, no LLM that is tuned, key and count, as shapes: nothing is allocated."""
    batch, text = whole_inputs(config, OBSERVATION, ACTION)
    state = jax.eval_shape(agent.init, jax.random.key(0), batch, text)
    episodes, integer = TASKS * EPISODES, jnp.int32
    store = Store(
        observations=abstract(1, episodes, STEPS + 1, OBSERVATION),
        actions=abstract(1, episodes, STEPS, ACTION),
        rewards=abstract(1, episodes, STEPS),
        terminations=abstract(1, episodes, STEPS, dtype=bool),
        lengths=abstract(1, episodes, dtype=integer),
        task_id=abstract(1, episodes, dtype=integer),
        task_episodes=abstract(1, TASKS, EPISODES, dtype=integer),
        task_counts=abstract(1, TASKS, dtype=integer),
    )
    size, width = abstract(OBSERVATION), abstract(ACTION)
    statistics = Statistics(size, size, width, width, abstract(), abstract())
    rows = TASKS * DESCRIPTIONS
    texts = TextTable(
        states=abstract(rows, TOKENS, text.states.shape[-1]),
        state_rows=abstract(rows, dtype=integer),
        mask=abstract(rows, TOKENS, dtype=bool),
        numbers=abstract(rows, TOKENS),
        number_index=abstract(rows, TOKENS, dtype=integer),
        rows=abstract(TASKS, DESCRIPTIONS, dtype=integer),
        counts=abstract(TASKS, dtype=integer),
    )
    key = jax.eval_shape(jax.random.key, 0)
    return state, store, statistics, texts, None, key, abstract(dtype=integer)


def size_of(tree) -> int:
    """Bytes of the arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def crossing(hlo: str) -> dict[str, tuple[int, int]]:
    """Of each collective operation how often it occurs, and the bytes of what it gives."""
    found: dict[str, tuple[int, int]] = {}
    for shapes, name in re.findall(rf"= (.+?) ({OPERATIONS})(?:-start)?\(", hlo):
        size = 0
        for kind, axes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size += BYTES[kind] * int(np.prod([int(axis) for axis in axes.split(",") if axis]))
        count, before = found.get(name, (0, 0))
        found[name] = count + 1, before + size
    return found


def main() -> None:
    config = default_config()
    config.data.groups = GROUPS
    sizes = BatchSizes(GROUPS, config.data.group_size, config.data.prompt_length)
    print("| devices | state (MB) | data (MB) | texts (MB) | workspace (MB) | GFLOP of matrix products | crossing |")
    print("|---|---|---|---|---|---|---|")
    for devices in (1, 2, 8):
        mesh = Mesh(np.array(jax.devices()[:devices]), (DATA,))
        agent = make_agent(config, OBSERVATION, ACTION, DATA if devices > 1 else None)
        state, store, *others = inputs(config, agent)
        place = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
        placed = jax.tree.map(lambda x, place=place: place(x.shape, x.dtype), (state, store, *others))
        compiled = make_train_call(agent, sizes, mesh).lower(*placed).compile()
        batch, text = whole_inputs(config, OBSERVATION, ACTION)
        alone = make_agent(config, OBSERVATION, ACTION)
        flops = counted_flops(jax.make_jaxpr(alone.update)(state, batch, text, jax.random.key(0)).jaxpr) / devices
        crossed = [f"{count} {name}, {size:,} bytes" for name, (count, size) in crossing(compiled.as_text()).items()]
        cells = [size_of(tree) / 1e6 for tree in (state, store, others[1])]
        cells.append(compiled.memory_analysis().temp_size_in_bytes / 1e6)
        shown = " | ".join(f"{cell:.1f}" for cell in cells)
        print(f"| {devices} | {shown} | {flops / 1e9:.2f} | {'; '.join(crossed) or 'nothing'} |", flush=True)


if __name__ == "__main__":
    main()
