"""What one update costs, counted rather than timed: FLOPs, memory, kernels, seconds to compile.

For every policy improvement of the single-task method at its peers' sizes, and for the whole method with both prompts
at the sizes of the default config.
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from llmdpd_jax.agents.diffusion_ql import POLICY_IMPROVEMENTS
from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.bench.diffusion import (
    ACTION,
    BATCH,
    NETWORKS,
    OBSERVATION,
    bench_batch,
    bench_config,
    necessary_flops,
    single_task,
)
from llmdpd_jax.bench.machine import device_name, keep_to_cpus
from llmdpd_jax.bench.rows import Report, Row
from llmdpd_jax.config import default_config
from llmdpd_jax.training.step import compiler_options
from llmdpd_jax.types import Batch, TextPrompt, TrajectoryPrompt

TEXT_TOKENS, TEXT_WIDTH = 32, 64  # of a description about as long as most, in the networks' units
# Instructions of a compiled program that cost no call of a kernel.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "after-all"}


def counted_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products in a jaxpr, the body of a scan counted as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = np.prod([left[axis] for axis in contracted])
            total += 2.0 * depth * np.prod(equation.outvars[0].aval.shape)
        often = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    total += often * counted_flops(inner)
    return total


def kernel_calls(hlo: str) -> int:
    """How many kernels a compiled program calls, the body of a loop counted as often as it runs.

    A loop so small that XLA compiles it into one function (newer versions do, on the CPU) is one kernel.
    """
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and " = " not in line:
            name = head.group(2)
            entry = name if head.group(1) else entry
            bodies[name] = []
        elif re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
            bodies[name].append(line)

    def count(name: str) -> int:
        total = 0
        for line in bodies[name]:
            opcode = re.search(r" ([a-z][\w\-]*)\(", line.split(" = ", 1)[1])
            called = re.search(r" call\(.*to_apply=%?([\w.\-]+)", line)
            if called and "xla_cpu_small_call" not in line:
                total += count(called.group(1))
                continue
            total += opcode is not None and opcode.group(1) not in FREE
            loop = re.search(r" while\(.*body=%?([\w.\-]+)", line)
            if loop:
                trips = re.search(r'known_trip_count[^0-9]*"n":"(\d+)"', line)
                total += int(trips.group(1) if trips else 1) * count(loop.group(1))
        return total

    return count(entry)


def run_step_cost(cpus: Sequence[int]) -> Report:
    """Rows of a case each: GFLOP of matrix products (reference: what is necessary), MB, kernels, compile seconds."""
    keep_to_cpus(list(cpus))
    rows: list[Row] = []
    networks = next(iter(NETWORKS))
    for improvement in POLICY_IMPROVEMENTS:
        config = bench_config(networks, improvement)
        _, state, update = single_task(config)
        needed = necessary_flops(state.params, config)["update"] * BATCH
        rows += cost_rows(f"{improvement}, {networks}", update, (state, bench_batch()), needed, len(cpus))
    config = default_config()
    agent = make_agent(config, OBSERVATION, ACTION)
    batch, text = whole_inputs(config, OBSERVATION, ACTION)
    state = jax.jit(agent.init)(jax.random.key(0), batch, text)
    rows += cost_rows("both prompts, default networks", agent.update, (state, batch, text), None, len(cpus))
    return Report(tuple(rows))


def cost_rows(name: str, update: Callable, inputs: tuple, needed: float | None, threads: int) -> list[Row]:
    """The rows of one update `(*inputs, key) -> ...`."""
    inputs = (*inputs, jax.random.key(0))
    counted = counted_flops(jax.make_jaxpr(update)(*inputs).jaxpr)
    lowered = jax.jit(update, donate_argnums=0, compiler_options=compiler_options()).lower(*inputs)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    device = jax.devices()[0]
    shared = {"threads": threads, "device": device_name(device)}
    reference = {"reference": "necessary", "reference_value": needed / 1e9} if needed else {}
    figures = {
        "matrix products": (counted / 1e9, "GFLOP", reference),
        "state and batch": (memory.argument_size_in_bytes / 1e6, "MB", {}),
        "workspace": (memory.temp_size_in_bytes / 1e6, "MB", {}),
        "kernels": (float(kernel_calls(compiled.as_text())), "calls", {}),
        "compilation": (seconds, "s", {}),
    }
    return [
        Row(f"step-cost/{name}: {what}", value=value, unit=unit, **shared, **more)
        for what, (value, unit, more) in figures.items()
    ]


def whole_inputs(
    config: ml_collections.ConfigDict, observation_size: int, action_size: int
) -> tuple[Batch, TextPrompt]:
    """A batch and text prompts of a config's sizes: their values do not change the cost."""
    groups, size, length = config.data.groups, config.data.group_size, config.data.prompt_length
    prompt = TrajectoryPrompt(
        observations=jnp.ones((groups, length, observation_size)),
        actions=jnp.ones((groups, length, action_size)),
        rewards=jnp.ones((groups, length)),
        next_observations=jnp.ones((groups, length, observation_size)),
        mask=jnp.ones((groups, length), bool),
    )
    batch = Batch(
        observations=jnp.ones((groups, size, observation_size)),
        actions=jnp.ones((groups, size, action_size)),
        rewards=jnp.ones((groups, size)),
        next_observations=jnp.ones((groups, size, observation_size)),
        terminations=jnp.zeros((groups, size), bool),
        task_id=jnp.arange(groups),
        prompt=prompt,
    )
    text = TextPrompt(
        states=jnp.ones((groups, TEXT_TOKENS, TEXT_WIDTH)),
        mask=jnp.ones((groups, TEXT_TOKENS), bool),
        numbers=jnp.ones((groups, TEXT_TOKENS)),
        number_index=jnp.zeros((groups, TEXT_TOKENS), jnp.int32),
    )
    return batch, text
