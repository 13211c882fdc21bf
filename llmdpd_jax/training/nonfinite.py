"""An update that was not finite: what its batch was made of, drawn again on the host after the fact."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.data.normalise import normalise_batch
from llmdpd_jax.data.sampler import BatchSizes
from llmdpd_jax.data.store import divide_store
from llmdpd_jax.data.streaming import Draws, make_draw, read_batch
from llmdpd_jax.training.preparation import Given, run_keys
from llmdpd_jax.training.step import batch_keys, batch_sizes, draw_batch
from llmdpd_jax.types import Array, Batch, Store, TrajectoryPrompt

BATCH_FILE = "nonfinite.json"  # in the run folder: the batch of the update that stopped it
_GROUPS, _PLACES = 3, 3  # that the message names; the file has all


def redraw(store: Store, parts: int, sizes: BatchSizes, key: Array, step: int) -> Draws:
    """What the batch after `step` updates was drawn from: `draw_batch` of a store whose observations are its numbers.

    Args:
      store: on the host, not divided.
      parts: into which it was divided.
      key: the one of the run's updates.
    """
    episodes, steps = store.observations.shape[:2]
    places = np.stack(np.broadcast_arrays(np.arange(episodes)[:, None], np.arange(steps)), axis=-1)
    numbered = store.replace(observations=places.astype(np.int32), actions=store.actions[..., :1])
    draw = jax.jit(partial(draw_batch, divide_store(numbered, parts), sizes, 0))
    batch = jax.device_get(draw(batch_keys(key, step, jnp.arange(sizes.groups))[0]))
    (prompt_episode, prompt_step), (episode, first) = (
        np.moveaxis(x, -1, 0) for x in (batch.prompt.observations[:, 0], batch.observations)
    )
    return Draws(batch.task_id, prompt_episode, prompt_step, episode, first)


def read_store(store: Store, sizes: BatchSizes, draws: Draws) -> Batch:
    """The batch of these draws from a store on the host, NumPy, in the data's own units."""
    episode, steps = draws.episode, draws.step[..., None] + np.arange(sizes.chunk)  # [G, S], [G, S, H]
    weights = np.asarray(sizes.discount ** np.arange(sizes.chunk), np.float32)
    prompt = draws.prompt_episode[:, None]
    window = draws.prompt_step[:, None] + np.arange(sizes.prompt_length)  # [G, T]
    mask = window < store.lengths[prompt]
    window = np.where(mask, window, 0)
    return Batch(
        observations=store.observations[episode, draws.step],
        actions=store.actions[episode[..., None], steps].reshape(*episode.shape, -1),
        rewards=np.sum(weights * store.rewards[episode[..., None], steps], axis=-1),
        next_observations=store.observations[episode, draws.step + sizes.chunk],
        terminations=np.any(store.terminations[episode[..., None], steps], axis=-1),
        task_id=draws.task_id,
        prompt=TrajectoryPrompt(
            observations=np.where(mask[..., None], store.observations[prompt, window], 0),
            actions=np.where(mask[..., None], store.actions[prompt, window], 0),
            rewards=np.where(mask, store.rewards[prompt, window], 0),
            next_observations=np.where(mask[..., None], store.observations[prompt, window + 1], 0),
            mask=mask,
        ),
        weights=None if store.weights is None else store.weights[episode],
    )


def largest_values(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Largest size of any number of each transition [G, S] and of each prompt [G]; NaN or infinite where one is."""

    def largest(arrays: Sequence[Array], axes: int) -> np.ndarray:
        flat = [np.abs(np.asarray(x)).reshape(*x.shape[:axes], -1).max(axis=-1) for x in arrays]
        return np.max(flat, axis=0)

    transitions = batch.observations, batch.actions, batch.rewards, batch.next_observations
    prompt = batch.prompt
    return largest(transitions, 2), largest(
        (prompt.observations, prompt.actions, prompt.rewards, prompt.next_observations), 1
    )


def describe_batch(given: Given, seed: int, step: int) -> tuple[str, list[dict]]:
    """What the batch after `step` updates of the run of a seed was made of.

    Returns:
      A sentence: where the values are that are at fault, or that none are; and every group of the batch, JSON-able.
      Episodes are numbered as in their data set.
    """
    config, sizes = given.config, batch_sizes(given.config)
    if config.data.streaming:
        draws = make_draw(given.data, sizes, seed)(step)
        batch = read_batch(given.data, sizes, draws)
    else:
        draws = redraw(given.data.store, config.data.parts, sizes, run_keys(seed)[1], step)
        batch = read_store(given.data.store, sizes, draws)
    values, prompt_values = largest_values(jax.device_get(normalise_batch(given.units, batch)))
    first = np.searchsorted(given.data.task_id, np.arange(len(given.data.split.tasks)))  # episode of each task

    def group(g: int, chosen: np.ndarray, prompt: bool) -> dict:
        task, before = given.data.split.tasks[draws.task_id[g]], first[draws.task_id[g]]
        places = np.stack([draws.episode[g] - before, draws.step[g]], axis=-1)[chosen].tolist()
        shown = {"episode": int(draws.prompt_episode[g] - before), "step": int(draws.prompt_step[g])}
        return {"task": task.name, "dataset": task.source, "transitions": places} | (
            {"prompt": shown} if prompt else {}
        )

    everything = [group(g, np.ones(sizes.group_size, bool), True) for g in range(sizes.groups)]
    bad, bad_prompt = ~np.isfinite(values), ~np.isfinite(prompt_values)
    at_fault = [group(g, bad[g], bad_prompt[g]) for g in range(sizes.groups) if bad[g].any() or bad_prompt[g]]
    if at_fault:
        return f"its batch holds values that are not finite in the networks' units: {in_words(at_fault)}", everything
    most = max(values.max(), prompt_values.max())
    told = f"the values of its batch are finite (at most {most:.3g} in the networks' units), so parameters are at fault"
    return f"{told}: {in_words(everything)}", everything


def in_words(groups: Sequence[dict]) -> str:
    """The first few groups, and of each the first few transitions."""
    named = []
    for one in groups[:_GROUPS]:
        places = [f"episode {episode} step {step}" for episode, step in one["transitions"]]
        if len(places) > _PLACES:
            places[_PLACES:] = [f"{len(places) - _PLACES} transitions more"]
        if "prompt" in one:
            places.append(f"prompt of episode {one['prompt']['episode']} from step {one['prompt']['step']}")
        named.append(f"task {one['task']!r} ({one['dataset']}) {', '.join(places)}")
    more = len(groups) - _GROUPS
    return "; ".join(named) + (f"; {more} groups more" if more > 0 else "")


def write_batch(run: Path, update: int, metrics: Sequence[str], groups: Sequence[dict]) -> Path:
    """The whole batch of the update in a file of the run folder."""
    file = run / BATCH_FILE
    file.write_text(json.dumps({"update": update, "not_finite": list(metrics), "groups": list(groups)}, indent=1))
    return file
