"""Draws training batches and prompts from the store. Pure, of static shape, for use inside jit and scan."""

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.types import Array, Batch, Store, TrajectoryPrompt


def sample_batch(
    store: Store,
    key: Array,
    groups: int,
    group_size: int,
    prompt_length: int,
    chunk: int = 1,
    discount: float = 1.0,
) -> Batch:
    """Draws `groups` (G) tasks with one trajectory prompt each, and `group_size` (S) transitions per task.

    Tasks are uniform. The prompt is a uniformly drawn episode of the task; transitions are uniform over the steps of
    the task's *other* episodes, so a policy cannot read its target from its prompt. Every task of the store needs two
    episodes, which `load_split` checks for the train split. `terminations` are true ends only: the last step before a
    time limit bootstraps from its next observation like any other.

    With a `chunk` of H steps a transition is H steps of an episode in a row (Q-chunking, Li et al. 2025, arXiv
    2507.07969): its action is all of theirs, its reward their discounted sum, its next observation the one after the
    last. Transitions start at steps 0 to length - H, so that none reaches beyond its episode; every episode needs H
    steps.

    Args:
        store: see `llmdpd_jax.types.Store`.
        key: typed key; the same key gives the same batch.
        groups, group_size, prompt_length, chunk, discount: static; `prompt_length` as in `sample_prompts`.
    """
    task_key, prompt_key, window_key, step_key = jax.random.split(key, 4)
    task_id = jax.random.randint(task_key, (groups,), 0, store.task_counts.shape[0])
    count = store.task_counts[task_id]  # [G]
    prompt_place = jax.random.randint(prompt_key, (groups,), 0, count)  # [G] place in the task's row of episodes
    row = store.task_episodes[task_id]  # [G, M]
    place = jnp.arange(row.shape[1])
    usable = (place < count[:, None]) & (place != prompt_place[:, None])
    starts = store.lengths[row] - (chunk - 1)
    ends = jnp.cumsum(jnp.where(usable, starts, 0), axis=1)  # [G, M] starts up to and with an episode
    draw = jax.random.randint(step_key, (groups, group_size), 0, ends[:, -1:])  # [G, S] of the task's usable starts
    chosen = jax.vmap(lambda end, at: jnp.searchsorted(end, at, side="right", method="scan"))(ends, draw)
    before = jnp.take_along_axis(ends, jnp.maximum(chosen - 1, 0), axis=1)
    step = draw - jnp.where(chosen > 0, before, 0)
    episode = jnp.take_along_axis(row, chosen, axis=1)
    prompt_episode = jnp.take_along_axis(row, prompt_place[:, None], axis=1)[:, 0]
    steps = episode[..., None], step[..., None] + jnp.arange(chunk)  # [G, S, H]
    weights = jnp.asarray(discount ** np.arange(chunk), jnp.float32)
    return Batch(
        observations=store.observations[episode, step],
        actions=store.actions[steps].reshape(groups, group_size, -1),
        rewards=jnp.sum(weights * store.rewards[steps], axis=-1),
        next_observations=store.observations[episode, step + chunk],
        terminations=jnp.any(store.terminations[steps], axis=-1),
        task_id=task_id,
        prompt=_window(store, window_key, prompt_episode, prompt_length),
    )


def sample_prompts(store: Store, key: Array, task_ids: Array, prompt_length: int) -> TrajectoryPrompt:
    """A trajectory prompt for each of `task_ids` `[K]`: a uniformly drawn episode of the task, `[K, T, ...]`.

    T is `prompt_length`. Of a longer episode the prompt is a window of random start; a shorter one is followed by
    padding: mask False, values 0.
    """
    episode_key, window_key = jax.random.split(key)
    place = jax.random.randint(episode_key, task_ids.shape, 0, store.task_counts[task_ids])
    return _window(store, window_key, store.task_episodes[task_ids, place], prompt_length)


def _window(store: Store, key: Array, episodes: Array, length: int) -> TrajectoryPrompt:
    """A window of each episode `[K]`."""
    have = store.lengths[episodes]  # [K]
    start = jax.random.randint(key, episodes.shape, 0, jnp.maximum(have - length, 0) + 1)
    step = start[:, None] + jnp.arange(length)  # [K, T]
    mask = step < have[:, None]
    step = jnp.where(mask, step, 0)
    at = episodes[:, None]

    def read(array: Array, step: Array) -> Array:
        values = array[at, step]
        return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - 2)), values, 0)

    return TrajectoryPrompt(
        observations=read(store.observations, step),
        actions=read(store.actions, step),
        rewards=read(store.rewards, step),
        next_observations=read(store.observations, step + 1),
        mask=mask,
    )
