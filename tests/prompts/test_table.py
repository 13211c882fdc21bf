"""Which description belongs to which task, and the units of descriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.prompts.table import make_rows, make_table, normalise_text, sample_text, text_statistics
from llmdpd_jax.types import TextPrompt, TextStatistics


def test_rows_by_hand():
    rows, counts = make_rows([2, 1, 3])
    np.testing.assert_array_equal(rows, [[0, 1, 0], [2, 2, 2], [3, 4, 5]])
    np.testing.assert_array_equal(counts, [2, 1, 3])
    assert rows.dtype == counts.dtype == np.int32
    rows, _ = make_rows([1, 4])
    np.testing.assert_array_equal(rows, [[0, 0, 0, 0], [1, 2, 3, 4]])


@pytest.fixture(scope="module")
def table():
    """Six descriptions of three tasks; every array of description p holds p; 4 has the states of 1."""
    number = np.arange(6)
    return make_table(
        TextPrompt(
            states=np.broadcast_to(np.where(number == 4, 1, number)[:, None, None], (6, 4, 2)).astype(np.float32),
            mask=jnp.asarray(np.arange(4) < 1 + number[:, None] % 4),
            numbers=jnp.asarray(np.broadcast_to(number[:, None], (6, 4)), jnp.float32),
            number_index=jnp.asarray(np.broadcast_to(number[:, None], (6, 4)), jnp.int32),
        ),
        [2, 1, 3],
    )


def test_equal_states_are_kept_once(table):
    assert table.states.shape == (5, 4, 2)
    np.testing.assert_array_equal(table.state_rows, [0, 1, 2, 3, 1, 4])


def test_descriptions_are_uniform_over_those_of_the_task(table):
    task_id = jnp.asarray(np.arange(12_000).reshape(4000, 3) % 3)
    drawn = jax.jit(sample_text)(table, jax.random.key(0), task_id)
    assert drawn.states.shape == (4000, 3, 4, 2)
    description = np.asarray(drawn.numbers[..., 0]).astype(int)
    for task, mine in enumerate(([0, 1], [2], [3, 4, 5])):
        counts = np.bincount(description[:, task], minlength=6)
        assert set(np.flatnonzero(counts)) == set(mine)
        np.testing.assert_allclose(counts[mine] / 4000, 1 / len(mine), atol=0.03)


def test_a_drawn_description_is_whole(table):
    task_id = jnp.array([0, 1, 2, 2, 2, 0])
    drawn = sample_text(table, jax.random.key(1), task_id)
    for i in range(6):
        p = int(drawn.number_index[i, 0])
        np.testing.assert_array_equal(drawn.states[i], 1 if p == 4 else p)
        np.testing.assert_array_equal(drawn.mask[i], np.arange(4) < 1 + p % 4)
    again = sample_text(table, jax.random.key(1), task_id)
    np.testing.assert_array_equal(drawn.number_index, again.number_index)


@pytest.fixture(scope="module")
def prompts():
    """Two descriptions of three and two real tokens; padding holds rubbish; three tokens spell 3, 4 and 4."""
    return TextPrompt(
        states=jnp.array([[[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]], [[7.0, 40.0], [9.0, 40.0], [99.0, 99.0]]]),
        mask=jnp.array([[True, True, True], [True, True, False]]),
        numbers=jnp.array([[0.0, 3.0, 0.0], [4.0, 4.0, 0.0]]),
        number_index=jnp.array([[-1, 0, -1], [0, 0, -1]]),
    )


def test_statistics_are_those_of_real_tokens(prompts):
    statistics = text_statistics(prompts)
    np.testing.assert_allclose(statistics.state_mean, [5.0, 28.0], rtol=1e-6)
    np.testing.assert_allclose(statistics.state_std, [np.sqrt(8.0), np.sqrt(216.0)], rtol=1e-5)
    assert float(statistics.number_scale) == pytest.approx(np.sqrt((9 + 16 + 16) / 3), rel=1e-6)


@pytest.mark.parametrize(("index", "number", "scale"), [(-1, 0.0, 1.0), (0, 0.0, 1e-6)])
def test_statistics_without_numbers_and_of_zeros_alone_can_be_divided_by(prompts, index, number, scale):
    prompts = prompts.replace(
        numbers=jnp.full_like(prompts.numbers, number), number_index=jnp.full_like(prompts.number_index, index)
    )
    assert float(text_statistics(prompts).number_scale) == pytest.approx(scale)


def test_normalised_text_by_hand(prompts):
    statistics = TextStatistics(jnp.array([5.0, 10.0]), jnp.array([2.0, 10.0]), jnp.array(4.0))
    text = normalise_text(statistics, prompts)
    np.testing.assert_allclose(text.states[0], [[-2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(text.states[1], [[1.0, 3.0], [2.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(text.numbers, [[0.0, 0.75, 0.0], [1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(text.number_index, prompts.number_index)
    np.testing.assert_array_equal(text.mask, prompts.mask)
