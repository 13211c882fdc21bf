"""The compiled call of many updates: batches are drawn on the devices, nothing goes through the host.

One function is one device's share of an update. It is run as it is on one device, by `shard_map` on the devices of a
mesh, or by `pmap`; all give the same numbers up to the order of sums, for what a group draws depends on no device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec, Sharding

from llmdpd_jax import draws
from llmdpd_jax.agents.diffusion_ql import TrainState
from llmdpd_jax.agents.llmdpd import Agent
from llmdpd_jax.data.normalise import normalise_batch
from llmdpd_jax.data.sampler import sample_batch
from llmdpd_jax.models.llm.tuning import FrozenLLM
from llmdpd_jax.parallel import DATA, share_across
from llmdpd_jax.prompts.table import TextTable, sample_text
from llmdpd_jax.types import Array, Statistics, Store


@dataclass(frozen=True)
class BatchSizes:
    """What a batch is drawn by, as `sample_batch` takes it."""

    groups: int  # G, of all devices together
    group_size: int
    prompt_length: int
    chunk: int = 1
    discount: float = 1.0


def batch_sizes(config) -> BatchSizes:
    """Those of a config whose automatic fields are resolved."""
    data, agent = config.data, config.agent
    return BatchSizes(data.groups, data.group_size, data.prompt_length, agent.chunk, agent.discount)


def make_update(agent: Agent, sizes: BatchSizes, axis: str | None = None) -> Callable:
    """One device's share of drawing a batch and learning from it.

    Args:
      agent: made with the same axis.
      axis: name of the axis over whose devices the groups are divided; None: there is one device.

    Returns:
      `(state, store, statistics, texts, llm, key) -> (state, metrics)`. The store has a leading axis of parts [P, ...];
      the groups of a batch are divided among them in order. The key of a group depends only on the run's key, the step
      and its number in the batch: a resumed run draws the same batches, on whatever number of devices.
    """

    def update(
        state: TrainState, store: Store, statistics: Statistics, texts: TextTable, llm: FrozenLLM | None, key: Array
    ):
        keys = draws.fold_each(jax.random.fold_in(key, state.step), share_across(axis, sizes.groups))
        key_batch, key_text, key_update = draws.split(keys, 3)
        parts = len(store.task_counts)
        drawn = jax.vmap(
            lambda part, keys: sample_batch(
                part, keys, sizes.group_size, sizes.prompt_length, sizes.chunk, sizes.discount
            )
        )(store, key_batch.reshape(parts, -1))
        batch = normalise_batch(statistics, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn))
        return agent.update(state, batch, sample_text(texts, key_text, batch.task_id), key_update, llm)

    return update


def make_train_call(
    agent: Agent,
    sizes: BatchSizes,
    mesh: Mesh | None = None,
    parts: int = 1,
    form: str = "shard_map",
    sharding: Sharding | None = None,
) -> Callable:
    """The compiled call.

    Args:
      agent: for several devices made with the axis `parallel.DATA`.
      mesh: of the devices; None, or one of a single device: nothing is divided.
      parts: of the store. One part is copied to each device; several, a multiple of the devices, are divided.
      form: one of `parallel.FORMS`.
      sharding: without a mesh, of the state and the metrics that come back; None: the default device.

    Returns:
      `(state, store, statistics, texts, llm, key, count) -> (state, metrics)`: `count` updates (traced, so that a
      shorter last call compiles nothing) and the means of their metrics. The state is donated. Of a state with leading
      axes [N] and as many keys, N runs learn side by side from the same data. `llm` is the one that is tuned, None if
      it is frozen.
    """
    many = mesh is not None and mesh.size > 1
    one_update = make_update(agent, sizes, DATA if many else None)

    def updates(state, store, statistics, texts, llm, key, count):
        update = one_update
        if key.ndim:  # several runs
            update = jax.vmap(one_update, in_axes=(0, None, None, None, None, 0))

        def body(_, carry):
            state, sums = carry
            state, metrics = update(state, store, statistics, texts, llm, key)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(update, state, store, statistics, texts, llm, key)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, sums = jax.lax.fori_loop(0, count, body, (state, zeros))
        return state, jax.tree.map(lambda x: x / count, sums)

    if not many:
        return jax.jit(updates, donate_argnums=0, out_shardings=sharding)
    if form == "pmap":
        # Something must have an axis for the devices to share.
        axes = (0, *[None] * 7)
        mapped = jax.pmap(
            lambda _, *inputs: updates(*inputs), DATA, in_axes=axes, out_axes=None, devices=mesh.devices.flat
        )
        return partial(mapped, np.arange(mesh.size))
    copied, store_spec = PartitionSpec(), PartitionSpec(DATA) if parts > 1 else PartitionSpec()
    specs = (copied, store_spec, *[copied] * 5)
    shared = partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=copied, check_vma=False)
    return jax.jit(shared(updates), donate_argnums=0)
