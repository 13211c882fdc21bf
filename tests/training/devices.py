"""What several devices make of a run, printed as JSON: `python devices.py` on eight CPU devices that share a CPU.

With `--double` in double precision, at the default learning rate: no rounding is left to grow.
"""

import functools
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from precision import DOUBLE

sys.path.insert(0, str(Path(__file__).parent.parent))
from networks import make_text

from llmdpd_jax import parallel
from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.config import default_config
from llmdpd_jax.data.sampler import BatchSizes
from llmdpd_jax.data.store import divide_store, task_rows
from llmdpd_jax.parallel import DATA, copied, divided, place
from llmdpd_jax.prompts.table import TextTable
from llmdpd_jax.training.checkpoint import example_inputs
from llmdpd_jax.training.step import FIRST_BAD, make_train_call
from llmdpd_jax.types import Statistics, Store

OBSERVATION, ACTION, TASKS, EPISODES, STEPS, WIDTH = 3, 2, 4, 16, 6, 5
SIZES = BatchSizes(groups=16, group_size=4, prompt_length=4, discount=0.9)
UPDATES = 100
HELD = {}  # how much of the largest array of the parameters a device held, form by form


def make_config():
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.width": 16,
            "model.context_width": 8,
            "model.model_width": 8,
            "model.text_layers": 0,
            "model.trajectory_layers": 0,
            # Smooth, and small steps: where a gradient is nothing but rounding, Adam steps at random.
            "model.denoiser_activation": "silu",
            "model.critic_activation": "silu",
            **({"model.dtype": "float64"} if DOUBLE else {"optimiser.learning_rate": 1e-6}),
            "agent.alignment_weight": 0.5,
            "agent.detach_context": False,
            "agent.imaginary_share": 0.5,
        }
    )
    return config


def make_store() -> Store:
    rng = np.random.default_rng(0)
    episodes = TASKS * EPISODES
    return Store(
        observations=rng.standard_normal((episodes, STEPS + 1, OBSERVATION)).astype(np.float32),
        actions=rng.uniform(-1, 1, (episodes, STEPS, ACTION)).astype(np.float32),
        rewards=rng.standard_normal((episodes, STEPS)).astype(np.float32),
        terminations=np.zeros((episodes, STEPS), bool),
        lengths=rng.integers(2, STEPS + 1, episodes).astype(np.int32),
        task_id=np.repeat(np.arange(TASKS, dtype=np.int32), EPISODES),
        task_episodes=task_rows([EPISODES] * TASKS),
        task_counts=np.full(TASKS, EPISODES, np.int32),
        weights=rng.uniform(0.1, 2.0, episodes).astype(np.float32),
    )


def make_texts() -> TextTable:
    text = make_text(batch=(TASKS * 2,), width=WIDTH)
    rows, counts = task_rows([2] * TASKS), np.full(TASKS, 2, np.int32)
    return TextTable(text.states, np.arange(TASKS * 2), text.mask, text.numbers, text.number_index, rows, counts)


@functools.cache
def initial_state():
    """What every run starts from."""
    metadata = {"observation_size": OBSERVATION, "action_size": ACTION, "text_width": WIDTH, "config": "{}"}
    agent = make_agent(make_config(), OBSERVATION, ACTION)
    return jax.device_get(jax.jit(agent.init)(jax.random.key(0), *example_inputs(metadata)))


def run(devices: int, parts: int = 1, form: str = "shard_map", seeds: int = 1):
    """Parameters and metrics after UPDATES updates, and the compiled program as text."""
    config, mesh = make_config(), Mesh(np.array(jax.devices()[:devices]), (DATA,))
    agent = make_agent(config, OBSERVATION, ACTION, DATA if devices > 1 and form != "fsdp" else None)
    ranges = jnp.zeros(OBSERVATION), jnp.ones(OBSERVATION), -jnp.ones(ACTION), jnp.ones(ACTION)
    units = Statistics(*ranges, jnp.zeros(()), jnp.ones(()))
    state, key = initial_state(), jax.random.key(1)
    state, units, texts, store = map(in_double, (state, units, make_texts(), divide_store(make_store(), parts)))
    if seeds > 1:
        state = jax.tree.map(lambda x: jnp.stack([x] * seeds), state)
        key = jnp.stack([key, *jax.random.split(jax.random.key(2), seeds - 1)])
    state = place(state, divided(mesh, state) if form == "fsdp" else copied(mesh))
    units, texts, key = place((units, texts, key), copied(mesh))
    spec = PartitionSpec(DATA) if parts > 1 else PartitionSpec()
    store = place(store, NamedSharding(mesh, spec))
    call, text = make_train_call(agent, SIZES, mesh, spec, form), ""
    inputs = store, units, texts, None, key, np.int32(UPDATES)
    if form == "shard_map":
        call = call.lower(state, *inputs).compile()
        text = call.as_text()
    after, metrics = call(state, *inputs)
    largest = max(jax.tree.leaves(after.params), key=lambda x: x.nbytes)
    HELD[form] = largest.addressable_shards[0].data.nbytes / largest.nbytes
    del metrics[FIRST_BAD]  # no mean: a number that every device has
    return jax.device_get((after.params, metrics)), text


def in_double(tree):
    """A tree whose real numbers have double precision, if that is asked for."""
    return jax.tree.map(lambda x: x.astype(np.float64) if DOUBLE and x.dtype == np.float32 else x, tree)


def apart(found, expected) -> float:
    """Largest difference of any number in the two trees, relative to numbers above 1."""
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return max(float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1.0))) for a, b in pairs)


def collectives(hlo: str) -> list[str]:
    """The collective operations of a compiled program with the shapes that they give, sorted."""
    names = r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    return sorted(f"{name} {shape}" for shape, name in re.findall(rf"= (.+?) ({names})(?:-start)?\(", hlo))


def main() -> None:
    assert jax.device_count() == 8
    parallel.SMALLEST_DIVIDED = 64  # or all of these networks were too small to be divided
    one, alone = run(1)
    if DOUBLE:
        found = {"eight": run(8)[0], "pmap": run(8, form="pmap")[0]}
        print(json.dumps({name: apart(tree, one) for name, tree in found.items()}))
        return
    eight, hlo = run(8)
    in_parts, hlo_in_parts = run(8, parts=8)
    seeds, _ = run(8, seeds=2)
    report = {
        "metrics": {name: float(value) for name, value in one[1].items()},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(one[0])),
        "apart": {
            "eight": apart(eight, one),
            "pmap": apart(run(8, form="pmap")[0], one),
            "fsdp": apart(run(8, form="fsdp")[0], one),
            "parts": apart(in_parts, run(1, parts=8)[0]),
            "seeds": apart(jax.tree.map(lambda x: x[0], seeds), one),
            "other seed": apart(jax.tree.map(lambda x: x[1], seeds), one),
        },
        "held": HELD,
        "collectives": {"one": collectives(alone), "eight": collectives(hlo), "parts": collectives(hlo_in_parts)},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
