"""Draws training batches and prompts from the store. Pure, of static shape, for use inside jit and scan."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax import draws
from llmdpd_jax.types import Array, Batch, Store, TrajectoryPrompt


@dataclass(frozen=True)
class BatchSizes:
    """What a batch is made of."""

    groups: int  # G, of all devices and hosts together
    group_size: int  # S
    prompt_length: int  # steps of a trajectory prompt, as `sample_prompts` takes them
    chunk: int = 1  # H, actions of a transition
    discount: float = 1.0  # of the rewards within a chunk
    prompt_share: float = 1.0  # of a task's episodes, the best ones, from which prompts are drawn


def sample_batch(store: Store, keys: Array, sizes: BatchSizes) -> Batch:
    """Draws a task with a trajectory prompt for each key `[G]`, and `sizes.group_size` transitions of that task.

    Tasks are uniform. The prompt is an episode of the task, drawn uniformly from all of them, or from the best
    (`sizes.prompt_share`); transitions are uniform over the steps of the task's *other* episodes, so a policy cannot
    read its target from its prompt. Every task of the store needs two episodes, which `load_split` checks for the train
    split. `terminations` are true ends only: the last step before a time limit bootstraps from its next observation
    like any other.

    With a `chunk` of H steps a transition is H steps of an episode in a row (Q-chunking, Li et al. 2025, arXiv
    2507.07969): its action is all of theirs, its reward their discounted sum, its next observation the one after the
    last. Transitions start at steps 0 to length - H, so that none reaches beyond its episode; every episode needs H
    steps.

    Args:
        store: see `llmdpd_jax.types.Store`.
        keys: typed keys, one for each group: what a group draws depends on no other.
    """
    store = jax.tree.map(jnp.asarray, store)
    return jax.vmap(lambda key: _sample_group(store, key, sizes))(keys)


def _sample_group(store: Store, key: Array, sizes: BatchSizes) -> Batch:
    """One group of a batch: without the leading axis G."""
    bits = draws.bits(key, (3 + sizes.group_size,))
    task_id = draws.below(bits[0], store.task_counts.shape[0])
    count = store.task_counts[task_id]
    prompt_place = draws.below(bits[1], prompt_count(count, sizes.prompt_share))
    row = store.task_episodes[task_id]  # [M]
    place = jnp.arange(len(row))
    usable = (place < count) & (place != prompt_place)
    starts = store.lengths[row] - (sizes.chunk - 1)
    ends = jnp.cumsum(jnp.where(usable, starts, 0))  # [M] starts up to and with an episode
    draw = draws.below(bits[3:], ends[-1])  # [S] of the task's usable starts
    chosen = jnp.searchsorted(ends, draw, side="right", method="scan")
    step = draw - jnp.where(chosen > 0, ends[jnp.maximum(chosen - 1, 0)], 0)
    episode = row[chosen]
    steps = episode[:, None], step[:, None] + jnp.arange(sizes.chunk)  # [S, H]
    weights = jnp.asarray(sizes.discount ** np.arange(sizes.chunk), jnp.float32)
    return Batch(
        observations=store.observations[episode, step],
        actions=store.actions[steps].reshape(sizes.group_size, -1),
        rewards=jnp.sum(weights * store.rewards[steps], axis=-1),
        next_observations=store.observations[episode, step + sizes.chunk],
        terminations=jnp.any(store.terminations[steps], axis=-1),
        task_id=task_id,
        prompt=_window(store, bits[2], row[prompt_place], sizes.prompt_length),
        weights=None if store.weights is None else store.weights[episode],
    )


def prompt_count(count: Array, share: float) -> Array:
    """How many of a task's episodes prompts are drawn from, at least one. int32 [...], of counts [...]."""
    return jnp.maximum(jnp.round(count * share), 1).astype(jnp.int32)


def sample_prompts(
    store: Store, key: Array, task_ids: Array, prompt_length: int, share: float = 1.0
) -> TrajectoryPrompt:
    """A trajectory prompt for each of `task_ids` `[K]`: an episode of the task, `[K, T, ...]`, drawn uniformly.

    It is drawn from all of the task's episodes, or from a share of them, those of the highest return.

    T is `prompt_length`. Of a longer episode the prompt is a window of random start; a shorter one is followed by
    padding: mask False, values 0.

    Of a store of NumPy arrays, no more than the episodes drawn is put on the device.
    """
    bits = draws.bits(key, (2, len(task_ids)))
    place = draws.below(bits[0], prompt_count(store.task_counts[task_ids], share))
    drawn = store.task_episodes[task_ids, place]
    read = ("observations", "actions", "rewards", "lengths")
    few = store.replace(**{name: jnp.asarray(getattr(store, name)[drawn]) for name in read})
    return jax.vmap(lambda bits, episode: _window(few, bits, episode, prompt_length))(bits[1], jnp.arange(len(drawn)))


def _window(store: Store, bits: Array, episode: Array, length: int) -> TrajectoryPrompt:
    """A window of an episode, of random start."""
    have = store.lengths[episode]
    start = draws.below(bits, jnp.maximum(have - length, 0) + 1)
    step = start + jnp.arange(length)  # [T]
    mask = step < have
    step = jnp.where(mask, step, 0)

    def read(array: Array, step: Array) -> Array:
        values = array[episode, step]
        return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - 1)), values, 0)

    return TrajectoryPrompt(
        observations=read(store.observations, step),
        actions=read(store.actions, step),
        rewards=read(store.rewards, step),
        next_observations=read(store.observations, step + 1),
        mask=mask,
    )
