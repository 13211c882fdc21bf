"""Which description belongs to which task, and the units of descriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.prompts.table import (
    STATE_AXES,
    make_rows,
    make_table,
    normalise_table,
    normalise_text,
    sample_text,
    text_statistics,
)
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
    """Six descriptions of three tasks; the arrays of description p, 1 + p % 4 long, hold p; 5 has the states of 1."""
    states = [np.full((1 + p % 4, 2), p, np.float32) for p in range(6)]
    states[5] = states[1]

    def channel(p, dtype):
        return np.full(1 + p % 4, p, dtype)

    return make_table(
        [
            TextPrompt(s, np.ones(len(s), bool), channel(p, np.float32), channel(p, np.int32))
            for p, s in enumerate(states)
        ],
        [2, 1, 3],
    )


def test_equal_states_are_kept_once(table):
    assert table.states.shape == (5, 4, 2)
    np.testing.assert_array_equal(table.state_rows, [0, 1, 2, 3, 4, 1])


def test_descriptions_are_uniform_over_those_of_the_task(table):
    task_id = jnp.arange(12_000) % 3
    drawn = jax.jit(sample_text)(table, jax.random.split(jax.random.key(0), 12_000), task_id)
    assert drawn.states.shape == (12_000, 4, 2)
    description = np.asarray(drawn.numbers[:, 0]).astype(int).reshape(4000, 3)
    for task, mine in enumerate(([0, 1], [2], [3, 4, 5])):
        counts = np.bincount(description[:, task], minlength=6)
        assert set(np.flatnonzero(counts)) == set(mine)
        np.testing.assert_allclose(counts[mine] / 4000, 1 / len(mine), atol=0.03)


def test_a_drawn_description_is_whole(table):
    task_id = jnp.array([0, 1, 2, 2, 2, 0])
    drawn = sample_text(table, jax.random.split(jax.random.key(1), 6), task_id)
    for i in range(6):
        p = int(drawn.number_index[i, 0])
        real = np.arange(4) < 1 + p % 4
        np.testing.assert_array_equal(drawn.mask[i], real)
        np.testing.assert_array_equal(drawn.states[i, :, 0], np.where(real, 1 if p == 5 else p, 0))
    again = sample_text(table, jax.random.split(jax.random.key(1), 6), task_id)
    np.testing.assert_array_equal(drawn.number_index, again.number_index)


def prompts(numbers=((0.0, 3.0, 0.0), (4.0, 4.0)), index=((-1, 0, -1), (0, 0))):
    """Three descriptions of three, two and two tokens; the last is the second again to the LLM."""
    states = [
        np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]], np.float32),
        np.array([[7.0, 40.0], [9.0, 40.0]], np.float32),
    ]
    return [
        TextPrompt(states[i], np.ones(len(states[i]), bool), np.float32(numbers[i]), np.int32(index[i]))
        for i in (0, 1, 1)
    ]


def test_statistics_are_those_of_all_descriptions():
    """Tokens 1, 3, 5 once and 7, 9 twice; numbers 3 once and 4 four times: the median is 4."""
    statistics = text_statistics(make_table(prompts(), [1, 2]))
    tokens = np.array([[1, 10], [3, 10], [5, 40], [7, 40], [9, 40], [7, 40], [9, 40]], np.float64)
    np.testing.assert_allclose(statistics.state_mean, tokens.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.state_std, tokens.std(0), rtol=1e-5)
    assert float(statistics.number_scale) == 4.0
    np.testing.assert_array_equal(statistics.state_axes, np.eye(2))


def test_many_dimensions_become_principal_axes():
    """States that vary along three directions of 200 are kept whole, with a mean power of 1 along the axes."""
    rng = np.random.default_rng(0)
    states = np.float32(rng.standard_normal((300, 3)) @ rng.standard_normal((3, 200)) * rng.uniform(1, 9, 200) + 5.0)
    whole = TextPrompt(states, np.ones(300, bool), np.zeros(300, np.float32), np.full(300, -1, np.int32))
    table = make_table([whole], [1])
    statistics = text_statistics(table)
    assert statistics.state_axes.shape == (200, STATE_AXES)
    gram = np.asarray(statistics.state_axes).T @ np.asarray(statistics.state_axes)
    np.testing.assert_allclose(gram / gram[0, 0], np.eye(STATE_AXES), atol=1e-4)
    seen = np.asarray(normalise_table(statistics, table).states[0])
    assert np.mean(seen**2) == pytest.approx(1.0, rel=1e-3)
    assert np.mean(seen[:, 3:] ** 2) < 1e-6 < np.mean(seen[:, 2] ** 2) < np.mean(seen[:, 0] ** 2)
    # Distances between states are those of the standardised states, up to one factor.
    standard = (states - states.mean(0)) / states.std(0)
    apart = np.linalg.norm(standard[:-1] - standard[1:], axis=1) / np.linalg.norm(seen[:-1] - seen[1:], axis=1)
    np.testing.assert_allclose(apart, apart[0], rtol=1e-3)


def test_states_that_never_vary_stay_finite():
    token = TextPrompt(np.full((1, 200), 7.0, np.float32), np.ones(1, bool), np.zeros(1, np.float32), np.int32([-1]))
    table = make_table([token, token], [1, 1])
    statistics = text_statistics(table)
    assert np.isfinite(statistics.state_axes).all()
    np.testing.assert_array_equal(normalise_table(statistics, table).states, 0.0)


def test_large_numbers_count_by_their_logarithm():
    statistics = text_statistics(make_table(prompts(), [1, 2]))  # a scale of 4
    numbers = np.float32([[0.0, -8.0, 16.0, 16.0 + 4 * (np.e - 1), -16.0 - 4 * (np.e**2 - 1)]])
    text = TextPrompt(np.zeros((1, 5, 2), np.float32), np.ones((1, 5), bool), numbers, np.zeros((1, 5), np.int32))
    np.testing.assert_allclose(normalise_text(statistics, text).numbers, [[0.0, -2.0, 4.0, 5.0, -6.0]], rtol=1e-5)


@pytest.mark.parametrize(("index", "number", "scale"), [(-1, 0.0, 1.0), (0, 0.0, 1.0)])
def test_statistics_without_numbers_and_of_zeros_alone_can_be_divided_by(index, number, scale):
    table = make_table(prompts([[number] * 3, [number] * 2], [[index] * 3, [index] * 2]), [1, 2])
    assert float(text_statistics(table).number_scale) == pytest.approx(scale)


@pytest.mark.parametrize("at_once", [1, 2, 1024])
def test_a_table_is_normalised_as_its_descriptions_are(at_once, monkeypatch):
    monkeypatch.setattr("llmdpd_jax.prompts.table.ROWS_AT_ONCE", at_once)
    raw = make_table(prompts(), [1, 2])
    statistics = text_statistics(raw)
    table = normalise_table(statistics, raw)
    for p, one in enumerate(prompts()):
        expected, real = normalise_text(statistics, one), len(one.mask)
        states = table.states[table.state_rows[p]]
        np.testing.assert_allclose(states[:real], expected.states, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(states[real:], 0.0)
        np.testing.assert_allclose(table.numbers[p, :real], expected.numbers, rtol=1e-6)


def test_normalised_text_by_hand():
    """Two descriptions of three and two real tokens; padding holds rubbish; three tokens spell 3, 4 and 4."""
    prompts = TextPrompt(
        states=jnp.array([[[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]], [[7.0, 40.0], [9.0, 40.0], [99.0, 99.0]]]),
        mask=jnp.array([[True, True, True], [True, True, False]]),
        numbers=jnp.array([[0.0, 3.0, 0.0], [4.0, 4.0, 0.0]]),
        number_index=jnp.array([[-1, 0, -1], [0, 0, -1]]),
    )
    statistics = TextStatistics(jnp.array([5.0, 10.0]), jnp.array([2.0, 10.0]), jnp.eye(2), jnp.array(4.0))
    text = normalise_text(statistics, prompts)
    np.testing.assert_allclose(text.states[0], [[-2.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(text.states[1], [[1.0, 3.0], [2.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(text.numbers, [[0.0, 0.75, 0.0], [1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(text.number_index, prompts.number_index)
    np.testing.assert_array_equal(text.mask, prompts.mask)
