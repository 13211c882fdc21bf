"""The text prompts of many tasks as one table, and drawing one per task inside jit."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llmdpd_jax import draws
from llmdpd_jax.data.store import task_rows
from llmdpd_jax.prompts.text import pad_and_stack
from llmdpd_jax.types import Array, LLMInput, TextPrompt, TextStatistics

STATE_AXES = 128  # principal axes of the states that the networks are given
ROWS_AT_ONCE = 1024  # descriptions that are brought into the networks' units at a time
LINEAR_UP_TO = 4.0  # median sizes; larger numbers count by their logarithm


@struct.dataclass
class TextTable:
    """Every description of N tasks. Descriptions that are one text to the LLM share its states."""

    states: Array | LLMInput  # [U, L, D], distinct; or [U, ...], what an LLM that is being tuned reads
    state_rows: Array  # [P] int32, which of them a description has
    mask: Array  # [P, L], and the numeric channel, as in TextPrompt
    numbers: Array  # [P, L]
    number_index: Array  # [P, L]
    rows: Array  # [N, V] int32, which prompts describe a task; a row is padded by repeating its own entries
    counts: Array  # [N] int32, how many entries of the row are real


def make_table(prompts: Sequence[TextPrompt], counts: Sequence[int]) -> TextTable:
    """The table of P descriptions [L_p, ...], listed task after task, `counts[n]` (>= 1) of them for task n. NumPy.

    Descriptions that hold the same array of states (`cached_prompts`) share it, so that the table is as large as what
    the LLM read, not as what was written.
    """
    distinct: dict[int, int] = {}
    state_rows = [distinct.setdefault(id(prompt.states), len(distinct)) for prompt in prompts]
    _, first = np.unique(state_rows, return_index=True)
    states = pad_and_stack([prompts[i] for i in first]).states
    channel = pad_and_stack([prompt.replace(states=prompt.states[:, :0]) for prompt in prompts])
    arrays = states, np.asarray(state_rows, np.int32), channel.mask, channel.numbers, channel.number_index
    return TextTable(*arrays, *make_rows(counts))


def make_rows(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and counts for prompts that are listed task after task: `counts[n]` (>= 1) of them for task n."""
    return task_rows(counts), np.asarray(counts, np.int32)


def text_statistics(table: TextTable) -> TextStatistics:
    """Mean, spread and principal axes of the states of all descriptions' real tokens, and size of their numbers.

    The axes on which states vary little carry little of what a sentence means, and much by which a reader can know the
    train sentences from each other: without them it reads new sentences better.

    table: of train tasks only, in the LLM's own units.
    """
    real, numbers = _state_masks(table), table.numbers[table.number_index >= 0]
    sizes = np.abs(numbers[numbers != 0])
    # Real tokens only, and changed in place: where the LLM reads digits, hardly two descriptions share their states.
    states = table.states[real]
    # States count as often as descriptions share them.
    weights = (np.bincount(table.state_rows)[:, None] * real)[real]
    weights = (weights / weights.sum()).astype(states.dtype)
    mean = weights @ states
    states -= mean
    std = np.sqrt(np.einsum("n,nd,nd->d", weights, states, states)) + 1e-6
    states /= std
    return TextStatistics(
        state_mean=jnp.asarray(mean, jnp.float32),
        state_std=jnp.asarray(std, jnp.float32),
        state_axes=jnp.asarray(_principal_axes(states, weights), jnp.float32),
        number_scale=jnp.asarray(np.median(sizes) if sizes.size else 1.0, jnp.float32),
    )


def _principal_axes(states: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The first K = STATE_AXES principal axes [D, K] of standardised states [N, D]; if D is less, all, unturned."""
    width = states.shape[-1]
    if width <= STATE_AXES:
        return np.eye(width)
    power, axes = np.linalg.eigh((weights[:, None] * states).T @ states)  # in rising order
    power, axes = power[::-1][:STATE_AXES], axes[:, ::-1][:, :STATE_AXES]
    # An axis has two directions; the choice must not depend on the linear algebra library.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(STATE_AXES)])
    mean = power.mean()
    return axes / np.sqrt(mean if mean > 0 else 1.0)  # states that never vary have no power


def normalise_table(statistics: TextStatistics, table: TextTable) -> TextTable:
    """A table in the networks' units, on the device; padded tokens become 0."""
    masks = _state_masks(table)
    # Piece by piece: the LLM's own states are many times as large as what becomes of them.
    pieces = [slice(first, first + ROWS_AT_ONCE) for first in range(0, len(masks), ROWS_AT_ONCE)]
    states = [normalise_states(statistics, jnp.asarray(table.states[rows]), masks[rows]) for rows in pieces]
    numbers = _normalise_numbers(statistics, table.numbers)
    return jax.tree.map(jnp.asarray, table.replace(states=jnp.concatenate(states), numbers=numbers))


def normalise_states(statistics: TextStatistics, states: Array, mask: Array) -> Array:
    """States [..., L, D] in the networks' units [..., L, K], 0 where the mask [..., L] is False."""
    # Applied to the axes, which are few, rather than to the states: a table's may be gigabytes.
    axes = statistics.state_axes / statistics.state_std[:, None]
    return jnp.where(mask[..., None], states @ axes - statistics.state_mean @ axes, 0.0)


def _normalise_numbers(statistics: TextStatistics, numbers: Array) -> Array:
    """Numbers in median sizes; a number far larger than most ("within 500 steps") must not drown them."""
    numbers = numbers / statistics.number_scale
    beyond = jnp.maximum(jnp.abs(numbers) - LINEAR_UP_TO, 0.0)
    return jnp.where(beyond > 0.0, jnp.sign(numbers) * (LINEAR_UP_TO + jnp.log1p(beyond)), numbers)


def _state_masks(table: TextTable) -> np.ndarray:
    """Which tokens of the distinct states [U, L] are real: those of any description that has them."""
    _, first = np.unique(table.state_rows, return_index=True)
    return table.mask[first, : table.states.shape[1]]


def normalise_text(statistics: TextStatistics, prompt: TextPrompt) -> TextPrompt:
    """A text prompt in the networks' units; padded tokens become 0."""
    return TextPrompt(
        states=normalise_states(statistics, prompt.states, prompt.mask),
        mask=prompt.mask,
        numbers=_normalise_numbers(statistics, prompt.numbers),
        number_index=prompt.number_index,
    )


def sample_text(table: TextTable, keys: Array, task_id: Array) -> TextPrompt:
    """One description per task, drawn uniformly with a key for each. task_id int [G] -> prompts [G, L, ...]."""
    column = draws.below(draws.bits(keys, task_id.shape), table.counts[task_id])
    description = table.rows[task_id, column]
    row = table.state_rows[description]
    return TextPrompt(
        states=jax.tree.map(lambda states: states[row], table.states),
        mask=table.mask[description],
        numbers=table.numbers[description],
        number_index=table.number_index[description],
    )
