"""The text prompts of many tasks on the device, and drawing one per task inside jit."""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llmdpd_jax.types import Array, TextPrompt, TextStatistics


@struct.dataclass
class TextTable:
    """Every description of N tasks. Descriptions that are one text to the LLM share its states."""

    states: Array  # [U, L, D], distinct
    state_rows: Array  # [P] int32, which of them a description has
    mask: Array  # [P, L], and the numeric channel, as in TextPrompt
    numbers: Array  # [P, L]
    number_index: Array  # [P, L]
    rows: Array  # [N, V] int32, which prompts describe a task; a row is padded by repeating its own entries
    counts: Array  # [N] int32, how many entries of the row are real


def make_table(prompts: TextPrompt, counts: Sequence[int]) -> TextTable:
    """The table of P descriptions [P, L, ...], listed task after task, `counts[n]` (>= 1) of them for task n."""
    states = np.asarray(prompts.states)
    first: dict[bytes, int] = {}
    state_rows = [first.setdefault(hashlib.sha256(one.tobytes()).digest(), len(first)) for one in states]
    _, places = np.unique(state_rows, return_index=True)
    arrays = states[places], np.asarray(state_rows, np.int32), prompts.mask, prompts.numbers, prompts.number_index
    return TextTable(*map(jnp.asarray, (*arrays, *make_rows(counts))))


def make_rows(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and counts for prompts that are listed task after task: `counts[n]` (>= 1) of them for task n."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = [start + np.arange(max(counts)) % count for start, count in zip(starts, counts, strict=True)]
    return np.stack(rows).astype(np.int32), np.asarray(counts, np.int32)


def text_statistics(prompts: TextPrompt) -> TextStatistics:
    """Mean and spread of the real tokens' states and size of the numbers. prompts [P, L, ...] of train tasks only."""
    states = np.asarray(prompts.states)[np.asarray(prompts.mask)]
    numbers = np.asarray(prompts.numbers)[np.asarray(prompts.number_index) >= 0]
    return TextStatistics(
        state_mean=jnp.asarray(states.mean(axis=0), jnp.float32),
        state_std=jnp.asarray(states.std(axis=0) + 1e-6, jnp.float32),
        number_scale=jnp.asarray(max(np.sqrt(np.mean(numbers**2)), 1e-6) if numbers.size else 1.0, jnp.float32),
    )


def normalise_text(statistics: TextStatistics, prompt: TextPrompt) -> TextPrompt:
    """A text prompt in the networks' units; padded tokens become 0."""
    states = (prompt.states - statistics.state_mean) / statistics.state_std
    return TextPrompt(
        states=jnp.where(prompt.mask[..., None], states, 0.0),
        mask=prompt.mask,
        numbers=prompt.numbers / statistics.number_scale,
        number_index=prompt.number_index,
    )


def sample_text(table: TextTable, key: Array, task_id: Array) -> TextPrompt:
    """One description per task, drawn uniformly. task_id int [...] -> prompts [..., L, ...]."""
    column = jax.random.randint(key, task_id.shape, 0, table.counts[task_id])
    description = table.rows[task_id, column]
    return TextPrompt(
        states=table.states[table.state_rows[description]],
        mask=table.mask[description],
        numbers=table.numbers[description],
        number_index=table.number_index[description],
    )
