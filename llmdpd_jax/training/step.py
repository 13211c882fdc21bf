"""The compiled call of many updates: batches are drawn on the devices, nothing goes through the host.

One function is one device's share of an update. It is run as it is on one device, by `shard_map` on the devices of a
mesh, or by `pmap`. Where a device has no room for a copy of the networks the same function is the whole update, of
arrays that are divided among devices (FSDP), and XLA divides the work. All give the same numbers up to the order of
sums, for what a group draws depends on no device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from llmdpd_jax import draws
from llmdpd_jax.agents.diffusion_ql import TrainState
from llmdpd_jax.agents.llmdpd import Agent
from llmdpd_jax.data.normalise import normalise_batch
from llmdpd_jax.data.sampler import BatchSizes, sample_batch
from llmdpd_jax.models.llm.tuning import FrozenLLM
from llmdpd_jax.parallel import DATA, divided, share_across
from llmdpd_jax.prompts.table import TextTable, sample_text
from llmdpd_jax.types import Array, Batch, Statistics, Store

COPIED = PartitionSpec()
FIRST_BAD = "first_bad"  # among the metrics of a call: `state.step` before its first update that was not finite, or -1
SKIPPED = "skipped"  # ... and how many of its updates were left out, where such updates are
Source = Store | Batch
"""Where batches come from: a store in parts [P, ...] (`divide_store`), or batches of the coming updates [K, G, ...]."""


def batch_sizes(config) -> BatchSizes:
    """Those of a config whose automatic fields are resolved."""
    data, agent = config.data, config.agent
    return BatchSizes(data.groups, data.group_size, data.prompt_length, agent.chunk, agent.discount, data.prompt_share)


def batch_keys(key: Array, step: Array, groups: Array) -> Array:
    """Keys of the groups int [G] of the batch after `step` updates, [3, G]: for transitions, texts and the losses.

    They depend only on the run's key, the step and the group's number in the batch: a resumed run draws the same
    batches, on whatever number of devices.
    """
    return draws.split(draws.fold_each(jax.random.fold_in(key, step), groups), 3)


def draw_batch(source: Source, sizes: BatchSizes, number: Array, keys: Array) -> Batch:
    """A batch of a group for each key [G]; batches that are there already are taken by their number."""
    if isinstance(source, Batch):
        return jax.tree.map(lambda x: x[number], source)
    # The groups are divided among the parts in order.
    keys = keys.reshape(len(source.task_counts), -1)
    batch = jax.vmap(lambda part, keys: sample_batch(part, keys, sizes))(source, keys)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def make_update(agent: Agent, sizes: BatchSizes, axis: str | None = None, by_group: Sharding | None = None) -> Callable:
    """One device's share of drawing a batch and learning from it.

    Args:
      agent: made with the same axis.
      axis: name of the axis over whose devices the groups are divided; None: there is one device, or what is computed
        is all of the update.
      by_group: how arrays [G, ...] lie on the devices, in an update of arrays that are divided among them.

    Returns:
      `(state, number, source, statistics, texts, llm, key) -> (state, metrics)`, with the number of the update in the
      call.
    """

    def divide(tree: Any) -> Any:
        return tree if by_group is None else jax.lax.with_sharding_constraint(tree, by_group)

    def update(
        state: TrainState,
        number: Array,
        source: Source,
        statistics: Statistics,
        texts: TextTable,
        llm: FrozenLLM | None,
        key: Array,
    ) -> tuple[TrainState, dict[str, Array]]:
        key_batch, key_text, key_update = batch_keys(key, state.step, divide(share_across(axis, sizes.groups)))
        batch = divide(normalise_batch(statistics, draw_batch(source, sizes, number, key_batch)))
        return agent.update(state, batch, divide(sample_text(texts, key_text, batch.task_id)), key_update, llm)

    return update


def watch(update: Callable, skip: bool) -> Callable:
    """The update, which also says whether it was finite: `(state, metrics, finite [])`.

    It was if its metrics are, the norm of the gradient among them. With `skip` one that was not leaves of the state all
    but the step as it was: the next one draws another batch.
    """

    def watched(state: TrainState, *inputs) -> tuple[TrainState, dict[str, Array], Array]:
        after, metrics = update(state, *inputs)
        finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        if skip:
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
            after = kept.replace(step=after.step)
        return after, metrics, finite

    return watched


def make_train_call(
    agent: Agent,
    sizes: BatchSizes,
    mesh: Mesh | None = None,
    source: PartitionSpec = COPIED,
    form: str = "shard_map",
    sharding: Sharding | None = None,
    skip: bool = False,
) -> Callable:
    """The compiled call.

    Args:
      agent: for several devices made with the axis `parallel.DATA`, unless the form is fsdp.
      mesh: of the devices; None, or one of a single device: nothing is divided.
      source: how the source of batches lies on the devices of the mesh.
      form: one of `parallel.FORMS`. With pmap the source has to be copied to each device; with fsdp the state has to
        lie as `parallel.divided` says, and so it comes back.
      sharding: without a mesh, of the state and the metrics that come back; None: the default device.
      skip: updates that are not finite are left out.

    Returns:
      `(state, source, statistics, texts, llm, key, count) -> (state, metrics)`: `count` updates (traced, so that a
      shorter last call compiles nothing) and the means of their metrics, with FIRST_BAD and, of calls that skip,
      SKIPPED among them. Where none are skipped the means end with the first update that was not finite: what follows
      it would hide which metrics were not. The state is donated. Of a state with leading axes [N] and as many keys, N
      runs learn side by side from the same data. `llm` is the one that is tuned, None if it is frozen.
    """
    many = mesh is not None and mesh.size > 1
    whole = many and form == "fsdp"  # the update of all groups, on arrays that are divided
    by_group = NamedSharding(mesh, PartitionSpec(DATA)) if whole else None
    one_update = watch(make_update(agent, sizes, DATA if many and not whole else None, by_group), skip)

    def updates(state, *inputs):
        *inputs, count = inputs
        update = one_update
        if inputs[-1].ndim:  # keys of several runs
            update = jax.vmap(one_update, in_axes=(0, None, None, None, None, None, 0))

        def body(number, carry):
            state, sums, taken, first_bad = carry
            step = state.step
            state, metrics, finite = update(state, number, *inputs)
            if whole:
                state = jax.lax.with_sharding_constraint(state, divided(mesh, state))
            counts = finite if skip else first_bad < 0
            sums = jax.tree.map(lambda total, x: total + jnp.where(counts, x, 0.0), sums, metrics)
            first_bad = jnp.where(finite | (first_bad >= 0), first_bad, step)
            return state, sums, taken + counts, first_bad

        shapes = jax.eval_shape(update, state, count, *inputs)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = state, zeros, jnp.zeros(state.step.shape, jnp.int32), jnp.full(state.step.shape, -1, jnp.int32)
        state, sums, taken, first_bad = jax.lax.fori_loop(0, count, body, start)
        metrics = jax.tree.map(lambda x: x / jnp.maximum(taken, 1), sums)
        return state, metrics | {FIRST_BAD: first_bad} | ({SKIPPED: count - taken} if skip else {})

    if not many or whole:
        lies = None if whole else sharding
        return jax.jit(updates, donate_argnums=0, out_shardings=lies, compiler_options=compiler_options())
    if form == "pmap":
        # Something must have an axis for the devices to share.
        axes, devices = (0, *[None] * 7), list(mesh.devices.flat)
        mapped = jax.pmap(lambda _, *inputs: updates(*inputs), DATA, in_axes=axes, out_axes=None, devices=devices)
        return partial(mapped, np.arange(mesh.size))
    specs = COPIED, source, *[COPIED] * 5
    shared = jax.shard_map(updates, mesh=mesh, in_specs=specs, out_specs=COPIED, check_vma=False)
    return jax.jit(shared, donate_argnums=0, compiler_options=compiler_options())


def compiler_options(run_once: bool = False) -> dict[str, Any]:
    """XLA's options for an update, or for what is run but once, on CPUs; elsewhere its defaults. `jax.pmap` takes none.

    The time of an update goes into matrix products, which are a library's. What LLVM's upper levels do to the rest does
    not show in it, but makes compiling half as long again.
    """
    if jax.default_backend() != "cpu":
        return {}
    if run_once:
        return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return {"xla_backend_optimization_level": 1}


def join_metrics(parts: Sequence[dict[str, Array]], counts: Sequence[int]) -> dict[str, Array]:
    """The metrics of one run's calls in a row, of so many updates each, as of a single call."""
    stacked = {name: jnp.stack([part[name] for part in parts]) for name in parts[0]}
    first_bad, skipped = stacked.pop(FIRST_BAD), stacked.pop(SKIPPED, None)
    taken = np.asarray(counts) - (0 if skipped is None else skipped)
    joined = {name: jnp.sum(x * taken) / jnp.maximum(jnp.sum(taken), 1) for name, x in stacked.items()}
    joined[FIRST_BAD] = first_bad[jnp.argmax(first_bad >= 0)]
    return joined if skipped is None else joined | {SKIPPED: jnp.sum(skipped)}
