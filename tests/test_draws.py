"""Draws from a batch of keys: each key serves its own part, whatever others there are."""

import jax
import numpy as np
import pytest

from llmdpd_jax import draws

KEYS = jax.random.split(jax.random.key(0), 4)


def test_each_key_draws_as_if_it_were_alone():
    drawn = draws.normal(KEYS, (4, 3, 2))
    for i, key in enumerate(KEYS):
        np.testing.assert_array_equal(drawn[i], jax.random.normal(key, (3, 2)))
    np.testing.assert_array_equal(draws.normal(KEYS[1:3], (2, 3, 2)), drawn[1:3])  # divided among devices
    np.testing.assert_array_equal(draws.normal(KEYS[0], (3, 2)), drawn[0])
    assert draws.bernoulli(KEYS, 0.5, (4, 100)).mean(axis=1).min() > 0.3
    whole = draws.integers(KEYS, (4, 200), 1, 4)
    assert set(np.ravel(whole)) == {1, 2, 3} and not np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize("count", [1, 3, 7, 2**31 - 1])
def test_random_bits_as_whole_numbers_below_a_count(count):
    bits = np.random.default_rng(0).integers(0, 2**32, 6000, np.uint32)
    found = np.asarray(draws.below(bits, count))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, bits.astype(np.int64) % count)
    if count < 10:
        expected = len(bits) / count
        assert ((np.bincount(found, minlength=count) - expected) ** 2 / expected).sum() < 22, "chi-square, p = 0.001"
    each = draws.below(bits[:2], np.array([2, 5]))
    np.testing.assert_array_equal(each, [bits[0] % 2, bits[1] % 5])


def test_bits_are_those_of_single_precision_in_double_precision():
    """jax.random.bits would draw uint64."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        drawn, numbers = draws.bits(KEYS, (4, 5)), draws.integers(KEYS, (4, 5), 1, 4)
    np.testing.assert_array_equal(drawn, draws.bits(KEYS, (4, 5)))
    np.testing.assert_array_equal(numbers, draws.integers(KEYS, (4, 5), 1, 4))


def test_split_keys_are_those_of_each_key():
    first, second = draws.split(KEYS, 2)
    for i, key in enumerate(KEYS):
        assert (jax.random.key_data(jax.random.split(key)[0]) == jax.random.key_data(first[i])).all()
        assert (jax.random.key_data(jax.random.split(key)[1]) == jax.random.key_data(second[i])).all()
    numbered = draws.fold_each(KEYS[0], np.arange(3))
    assert (jax.random.key_data(numbered[2]) == jax.random.key_data(jax.random.fold_in(KEYS[0], 2))).all()


def test_old_keys_are_taken_for_what_they_stand_for():
    """Brax hands out uint32 [2]."""
    old = jax.random.key_data(KEYS)
    np.testing.assert_array_equal(draws.normal(old[0], (5,)), draws.normal(KEYS[0], (5,)))
    np.testing.assert_array_equal(draws.uniform(old, (4, 5)), draws.uniform(KEYS, (4, 5)))


def test_a_shape_has_to_start_with_the_keys_axes():
    with pytest.raises(ValueError, match="do not start with the axes"):
        draws.normal(KEYS, (3, 4))
