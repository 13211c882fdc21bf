"""How fast the method trains and acts, beside the same method in torch (`experiments/benchmarks`).

Diffusion-QL without a context, at the sizes its peers are measured at: 17 observations, 6 actions, batches of 256, a
chain of 5 steps, float32. "peers' networks" are Diffusion-QL's own, 3 layers of 256 Mish units; "default networks" are
those of this library's configs. Both sides start from the same parameters, and before anything is timed they must give
the same loss and gradients for the same batch and random numbers.
"""

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from llmdpd_jax.agents.diffusion_ql import (
    STUDENT,
    Context,
    DiffusionQL,
    TrainState,
    first_state,
    make_diffusion_ql,
    make_optimiser,
    next_state,
)
from llmdpd_jax.bench.machine import device_name
from llmdpd_jax.bench.peak import jax_matmul
from llmdpd_jax.bench.rows import Report, Row
from llmdpd_jax.bench.text import INSTALL_TORCH, check_same
from llmdpd_jax.bench.workers import Worker, take_turns
from llmdpd_jax.config import default_config
from llmdpd_jax.diffusion import process
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.training.step import compiler_options
from llmdpd_jax.types import Array, Batch

REFERENCE = "experiments.benchmarks.torch_diffusion_ql"
OBSERVATION, ACTION, BATCH = 17, 6, 256
UPDATES = 20  # of a turn
ACTION_CALLS = {1: 1000, 64: 100, 1024: 20, 4096: 5}  # of a turn, by batch size
NETWORKS = {
    "peers' networks": {
        "model.width": 256,
        "model.denoiser_activation": "mish",
        "model.critic_activation": "mish",
        "model.critic_layer_norm": False,
    },
    "default networks": {},
}
# What the peers do where this library's defaults are quicker or bolder.
PEERS = {"agent.discount": 0.99, "agent.target_sampling_steps": 5, "agent.cloning_weight": 1.0}


def bench_config(networks: str, improvement: str) -> ml_collections.ConfigDict:
    """The config of a case."""
    config = default_config()
    changes = NETWORKS[networks] | PEERS | {"agent.policy_improvement": improvement}
    config.update_from_flattened_dict(changes)
    return config


def bench_batch() -> Batch:
    """Transitions [BATCH] of noise: their values do not change the time."""
    rng = np.random.default_rng(0)
    return Batch(
        observations=jnp.asarray(rng.normal(size=(BATCH, OBSERVATION)), jnp.float32),
        actions=jnp.asarray(rng.uniform(-1, 1, (BATCH, ACTION)), jnp.float32),
        rewards=jnp.asarray(rng.normal(size=BATCH), jnp.float32),
        next_observations=jnp.asarray(rng.normal(size=(BATCH, OBSERVATION)), jnp.float32),
        terminations=jnp.asarray(rng.uniform(size=BATCH) < 0.01),
        task_id=jnp.zeros(BATCH, jnp.int32),
        prompt=None,
    )


def no_context(batch: int) -> Array:
    """A context of width 0."""
    return jnp.zeros((batch, 0))


def single_task(config: ml_collections.ConfigDict) -> tuple[DiffusionQL, TrainState, Callable]:
    """The method without a context: its functions, a first state, and `update(state, batch, key) -> (state, loss)`."""
    core, optimiser = make_diffusion_ql(config, OBSERVATION, ACTION), make_optimiser(config)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Array]:
        gradient = jax.value_and_grad(core.loss, has_aux=True)
        (loss, _), grads = gradient(state.params, state, batch, no_context(BATCH), key)
        return next_state(state, grads, optimiser, config.agent), loss

    params = jax.jit(core.init)(jax.random.key(0), bench_batch(), no_context(BATCH))
    # The last layers start at zero: gradients of what lies before them would be, too, and compilers know zeros.
    for network in {"denoiser", STUDENT} & set(params):
        last = params[network]["out"]
        last["kernel"] = 0.05 * jax.random.normal(jax.random.key(1), last["kernel"].shape)
    return core, first_state(params, optimiser), update


def write_problem(file: Path, networks: str, improvement: str) -> None:
    """Writes what both sides start from: batch, parameters, and the random numbers that `loss` draws with key 0."""
    config = bench_config(networks, improvement)
    _, state, _ = single_task(config)
    batch, schedule = bench_batch(), make_schedule(config.diffusion.schedule, config.diffusion.steps)
    shape = batch.actions.shape
    key_noise, key_time, key_next, key_chain = jax.random.split(jax.random.key(0), 4)
    draws = {
        "noise": jax.random.normal(key_noise, shape),
        "k": jnp.round(process.sample_time(key_time, schedule, shape[:-1]) * schedule.steps).astype(jnp.int32),
    }
    for name, key in {"next": key_next, "chain": key_chain}.items():
        key_start, key_steps = jax.random.split(key)
        draws[f"{name}_start"] = jax.random.normal(key_start, shape)
        noises = [jax.random.normal(k, shape) for k in jax.random.split(key_steps, schedule.steps)]
        draws[f"{name}_noises"] = jnp.stack(noises)
    logged = {
        name: jnp.asarray(getattr(batch, name), jnp.float32)
        for name in ("observations", "actions", "rewards", "next_observations", "terminations")
    }
    groups = {"batch": logged, "draw": draws, "param": state.params}
    np.savez(file, **{"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(groups).items()})


def read_params(file: Path) -> dict:
    """The parameters in such a file."""
    with np.load(file) as arrays:
        named = {tuple(name.split("/")[1:]): jnp.asarray(arrays[name]) for name in arrays if name.startswith("param/")}
    return unflatten_dict(named)


class FlaxDiffusionQL:
    """This library's side: updates, or actions if there are no updates."""

    def __init__(self, file: str, networks: str, improvement: str, updates: int, batch: int, calls: int):
        if not updates:
            # As README, "Use a policy", has it: no other thread is woken to act.
            jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.config, self.updates, self.calls = bench_config(networks, improvement), updates, calls
        self.core, self.state, update = single_task(self.config)
        params = read_params(Path(file)) | {n: p for n, p in self.state.params.items() if n == STUDENT}
        self.state = first_state(params, make_optimiser(self.config))
        # Compiled calls hand on the key of the next one, as numbers: typed keys are slow to hand over and to split.
        self.batch, self.key = bench_batch(), jax.random.key_data(jax.random.key(0))

        def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Array, Array]:
            """State, loss, and the key of the next call."""
            key, key_update = jax.random.split(jax.random.wrap_key_data(key))
            return *update(state, batch, key_update), jax.random.key_data(key)

        self.step = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
        self.seen = jax.random.normal(jax.random.key(1), (batch, OBSERVATION))
        context = Context(*[no_context(batch)] * 3)
        self.sampler, steps = (STUDENT, None) if improvement == "student" else ("ddim", self.config.diffusion.steps)

        def act(seen: Array, key: Array) -> tuple[Array, Array]:
            """Actions, and the key of the next call."""
            key, key_act = jax.random.split(jax.random.wrap_key_data(key))
            return self.core.act(acting, seen, context, key_act, self.sampler, steps), jax.random.key_data(key)

        acting = self.state.acting  # constants of the program, as `Policy.act` has them
        self.act = jax.jit(act)

    def facts(self) -> dict:
        """The device, and the FLOPs of the matrix products that a run cannot do without."""
        device = jax.devices()[0]
        per_row = necessary_flops(self.state.params, self.config)
        count = len(self.act(self.seen, self.key)[0])
        acted = per_row["student"] if self.sampler == STUDENT else per_row["chain"]
        return {
            "platform": device.platform,
            "device": device_name(device),
            "flops": self.updates * BATCH * per_row["update"] if self.updates else self.calls * count * acted,
        }

    def run(self) -> None:
        """The updates, or calls for actions."""
        for _ in range(self.updates):
            self.state, loss, self.key = self.step(self.state, self.batch, self.key)
        if self.updates:
            loss.block_until_ready()
            return
        for _ in range(self.calls):
            actions, self.key = self.act(self.seen, self.key)
            np.asarray(actions)

    def result(self, layer: None) -> np.ndarray:
        """The loss and its gradients by all weight matrices."""
        state = self.state
        gradient = jax.jit(jax.value_and_grad(self.core.loss, has_aux=True))
        (loss, _), grads = gradient(state.params, state, self.batch, no_context(BATCH), jax.random.key(0))
        depth = self.config.model.depth
        denoiser, members = grads["denoiser"], grads["critic"]["members"]
        hidden = [f"hidden_{i}" for i in range(depth)]
        layers = [denoiser[name] for name in ("action", "observation", "step", *hidden[:-1], "out")]
        layers += [members[name] for name in ("input", *hidden[1:], "out")]
        return np.concatenate([np.ravel(loss), *[np.ravel(layer["kernel"]) for layer in layers]])

    def matmul(self) -> float:
        """FLOP/s of one large matrix product."""
        return jax_matmul()


def necessary_flops(params: dict, config: ml_collections.ConfigDict) -> dict[str, float]:
    """FLOPs of matrix products per row of a batch that no implementation can do without.

    "update" of one gradient step, "chain" of drawing an action in as many steps as the denoiser is trained on,
    "student" of the student's one call. A backward pass is two products per layer, one for the weights and one for what
    lies before, and only where somebody needs them: nobody needs the gradient of a logged action.
    """

    def size(network: str, layer: str = "") -> float:
        leaves = flatten_dict(params.get(network, {})).items()
        return 2.0 * sum(leaf.size for path, leaf in leaves if path[-1] == "kernel" and layer in ("", *path))

    improvement, steps = config.agent.policy_improvement, config.diffusion.steps

    def learned(network: str, *first: str) -> float:
        """Forward and backward, from inputs that need no gradient through the layers named."""
        return 3 * size(network) - sum(size(network, layer) for layer in first)

    first = "action", "observation", "step"
    # In a chain all rows are at one step, which is embedded once.
    call = size("denoiser") - size("denoiser", "step")
    chain, next_action = steps * call, config.agent.target_sampling_steps * call
    critic = size("critic") / config.model.critic_ensemble
    of_observation = size("critic", "input") / config.model.critic_ensemble * OBSERVATION / (OBSERVATION + ACTION)
    through_critic = 2 * critic - of_observation  # Q of an action and its gradient by the action
    student = size(STUDENT) - size(STUDENT, "step")
    student_learned = 3 * student - size(STUDENT, "action") - size(STUDENT, "observation")
    cloning = learned("denoiser", *first)
    chain_learned = 3 * chain - steps * size("denoiser", "observation") - size("denoiser", "action")
    parts = {
        "one_step": next_action + through_critic + size("critic"),
        "full_chain": chain_learned + next_action + through_critic + size("critic"),
        "student": chain + student_learned + through_critic + student + size("critic"),
        "weighted": learned("value", "input") + size("value") + size("critic"),
    }
    update = cloning + learned("critic", "input") + parts[improvement]
    return {"update": update, "chain": chain, "student": student}


def reference_side() -> tuple[type | None, str]:
    """The torch side, or why there is none and what to do about it."""
    root = Path(__file__).parents[2]
    if not (root / Path(*REFERENCE.split("."))).with_suffix(".py").exists():
        return None, "no reference: experiments/benchmarks is not beside the package; run from a checkout"
    if importlib.util.find_spec("torch") is None:
        return None, f"no reference: torch not installed; {INSTALL_TORCH}"
    import torch

    platform = jax.devices()[0].platform
    if platform == "cpu" or (platform == "gpu" and torch.cuda.is_available()):
        if str(root) not in sys.path:  # as the workers have it, whatever folder this was started in
            sys.path.append(str(root))
        return importlib.import_module(REFERENCE).TorchDiffusionQL, ""
    return None, f"no reference: JAX uses a {platform} and torch cannot; JAX_PLATFORMS=cpu compares both on the CPU"


def torch_settings(config: ml_collections.ConfigDict) -> dict:
    """What the torch side has to know of a config."""
    model, agent = config.model, config.agent
    return {
        "width": model.width,
        "depth": model.depth,
        "denoiser_activation": model.denoiser_activation,
        "critic_activation": model.critic_activation,
        "critic_layer_norm": model.critic_layer_norm,
        "steps": config.diffusion.steps,
        "learning_rate": config.optimiser.learning_rate,
        "clip_norm": config.optimiser.clip_norm,
        **{n: agent[n] for n in ("discount", "eta", "cloning_weight", "critic_weight", "tau", "ema_decay")},
    }


def run_train(cpus: Sequence[int], repeats: int, updates: int = UPDATES) -> Report:
    """Rows of updates/s: every improvement and both networks, beside torch. `updates`: of one turn.

    The student's reference is the full chain in torch, which it stands in for.

    Raises: UserError if a side fails, or the sides do not compute the same.
    """
    cases = [(networks, improvement) for networks in NETWORKS for improvement in ("full_chain", "one_step", "student")]
    references = {case: (case[0], "full_chain" if case[1] == "student" else case[1]) for case in cases}
    names = {case: f"train/{case[1]}, {case[0]}" for case in cases}
    work = {"updates": updates, "batch": 1, "calls": 0}
    return _run(names, references, dict.fromkeys(cases, work), updates, "updates/s", cpus, repeats)


def run_sample(cpus: Sequence[int], repeats: int, calls: dict[int, int] | None = None) -> Report:
    """Rows of actions/s: the chain and the student at several batch sizes, beside the chain in torch.

    Args:
      calls: of one turn, by batch size.
    """
    calls = ACTION_CALLS if calls is None else calls
    networks = "peers' networks"
    cases = [(networks, way, size) for way in ("one_step", "student") for size in calls]
    references = {case: (networks, "one_step", case[2]) for case in cases}
    spoken = {"one_step": "chain", "student": "student"}
    names = {case: f"sample/{spoken[case[1]]}, batch {case[2]}" for case in cases}
    work = {case: {"updates": 0, "batch": case[2], "calls": calls[case[2]]} for case in cases}
    counts = {case: case[2] * calls[case[2]] for case in cases}
    return _run(names, references, work, counts, "actions/s", cpus, repeats)


def _run(
    names: dict[tuple, str],
    references: dict[tuple, tuple],
    work: dict[tuple, dict],
    counts: int | dict[tuple, int],
    unit: str,
    cpus: Sequence[int],
    repeats: int,
) -> Report:
    """Lets the sides of all cases take turns. A case is (networks, improvement, ...)."""
    torch_side, lacking = reference_side()
    platform = jax.devices()[0].platform
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(name: str, side: type, case: tuple, **arguments: Any) -> Worker:
            networks, improvement = case[:2]
            file = folder / f"{networks} {improvement}.npz"
            if not file.exists():
                write_problem(file, networks, improvement)
            given = {"file": str(file), "improvement": improvement, **work[case], **arguments}
            return stack.enter_context(Worker(name, side, given, cpus))

        workers = {case: start(name, FlaxDiffusionQL, case, networks=case[0]) for case, name in names.items()}
        if torch_side is not None:
            device = "cpu" if platform == "cpu" else "cuda"
            for case in dict.fromkeys(references.values()):
                told = {"settings": torch_settings(bench_config(*case[:2])), "threads": len(cpus), "device": device}
                reference = workers[("torch", *case)] = start(f"torch {case[1]}", torch_side, case, **told)
                check_same(workers[case], reference)
        facts = {case: workers[case].ask(do="facts") for case in names}
        seconds, peak = take_turns(workers, repeats)

    rows = []
    for case, name in names.items():
        count = counts if isinstance(counts, int) else counts[case]
        other = ("torch", *references[case])
        rows.append(
            Row(
                name,
                value=count / seconds[case],
                unit=unit,
                threads=len(cpus),
                device=facts[case]["device"],
                reference=f"torch {references[case][1]}" if torch_side else None,
                reference_value=count / seconds[other] if torch_side else None,
                peak_fraction=facts[case]["flops"] / seconds[case] / peak,
            )
        )
    return Report(tuple(rows), (lacking,) if lacking else ())
