"""Conversions between noise, clean action and velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.diffusion import process
from llmdpd_jax.diffusion.schedules import Schedule, make_schedule

# 0.6² + 0.8² = 1: numbers that can be followed by hand.
HAND = Schedule(alphas=jnp.array([1.0, 0.8, 0.6]), sigmas=jnp.array([0.0, 0.6, 0.8]))


@pytest.fixture(scope="module")
def draws():
    """Clean actions, noise [50, 3] and steps [50] that hit every k of K = 5."""
    keys = jax.random.split(jax.random.key(0), 2)
    x0 = jax.random.uniform(keys[0], (50, 3), minval=-1.0)
    return x0, jax.random.normal(keys[1], (50, 3)), 1 + jnp.arange(50) % 5


def test_numbers_by_hand():
    x0, noise, k = jnp.array([[0.5, -1.0]]), jnp.array([[2.0, 1.0]]), jnp.array([2])
    x = process.add_noise(HAND, x0, k, noise)
    np.testing.assert_allclose(x, [[0.6 * 0.5 + 0.8 * 2.0, 0.6 * -1.0 + 0.8 * 1.0]], rtol=1e-6)
    velocity = process.network_target("velocity", HAND, x0, k, noise)
    np.testing.assert_allclose(velocity, [[0.6 * 2.0 - 0.8 * 0.5, 0.6 * 1.0 + 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(process.network_target("x0", HAND, x0, k, noise), x0)
    np.testing.assert_array_equal(process.network_target("noise", HAND, x0, k, noise), noise)


@pytest.mark.parametrize("name", ["vp", "cosine"])
@pytest.mark.parametrize("parameterisation", process.PARAMETERISATIONS)
def test_the_target_stands_for_the_clean_action(parameterisation, name, draws):
    x0, noise, k = draws
    schedule = make_schedule(name, 5)
    x = process.add_noise(schedule, x0, k, noise)
    target = process.network_target(parameterisation, schedule, x0, k, noise)
    error = np.abs(process.to_x0(parameterisation, schedule, target, x, k) - x0).max(-1)
    # From noise, rounding errors grow by sigma / alpha.
    assert (error < 3e-6 * np.maximum(1.0, schedule.sigmas[k] / schedule.alphas[k])).all()


def test_noise_is_rebuilt(draws):
    x0, noise, k = draws
    schedule = make_schedule("vp", 5)
    x = process.add_noise(schedule, x0, k, noise)
    np.testing.assert_allclose(process.to_noise(schedule, x0, x, k), noise, atol=1e-5)
    # ... and any output has one noise and one clean action that together give x back.
    output = jnp.sin(x)
    for parameterisation in process.PARAMETERISATIONS:
        clean = process.to_x0(parameterisation, schedule, output, x, k)
        again = process.add_noise(schedule, clean, k, process.to_noise(schedule, clean, x, k))
        np.testing.assert_allclose(again, x, atol=1e-4)
        target = process.network_target(parameterisation, schedule, clean, k, process.to_noise(schedule, clean, x, k))
        np.testing.assert_allclose(target, output, atol=1e-4)


def test_steps_are_uniform_from_1_to_k():
    k = np.asarray(process.sample_step(jax.random.key(1), make_schedule("vp", 5), (100, 200)))
    counts = np.bincount(k.ravel(), minlength=6)
    assert counts[0] == 0 and len(counts) == 6
    np.testing.assert_allclose(counts[1:] / 20_000, 0.2, atol=0.015)
