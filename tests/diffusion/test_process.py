"""Conversions between noise, clean action and velocities, and the weights of their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.diffusion import process
from llmdpd_jax.diffusion.schedules import SCHEDULES, make_schedule

SCHEDULE_OF = {name: make_schedule(name, 5, "continuous") for name in SCHEDULES}
FLOW = SCHEDULE_OF["flow"]


@pytest.fixture(scope="module")
def draws():
    """Clean actions, noise [50, 3] and times [50]."""
    keys = jax.random.split(jax.random.key(0), 2)
    x0 = jax.random.uniform(keys[0], (50, 3), minval=-1.0)
    return x0, jax.random.normal(keys[1], (50, 3)), jnp.linspace(0.05, 0.95, 50)


def test_numbers_by_hand():
    """At time 1/4 of the straight path: alpha 0.75, sigma 0.25."""
    x0, noise, t = jnp.array([[0.5, -1.0]]), jnp.array([[2.0, 1.0]]), jnp.array([0.25])
    np.testing.assert_allclose(process.add_noise(FLOW, x0, t, noise), [[0.875, -0.5]], rtol=1e-6)
    np.testing.assert_array_equal(process.network_target("x0", FLOW, x0, t, noise), x0)
    np.testing.assert_array_equal(process.network_target("noise", FLOW, x0, t, noise), noise)
    np.testing.assert_allclose(process.network_target("flow", FLOW, x0, t, noise), [[1.5, 2.0]])
    size = np.hypot(0.75, 0.25)
    velocity = [[(0.75 * 2.0 - 0.25 * 0.5) / size, (0.75 + 0.25) / size]]
    np.testing.assert_allclose(process.network_target("velocity", FLOW, x0, t, noise), velocity, rtol=1e-6)
    np.testing.assert_allclose(process.network_input(FLOW, x0, t), x0 / size, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("parameterisation", process.PARAMETERISATIONS)
def test_the_target_stands_for_the_clean_action(parameterisation, name, draws):
    (x0, noise, t), schedule = draws, SCHEDULE_OF[name]
    x = process.add_noise(schedule, x0, t, noise)
    target = process.network_target(parameterisation, schedule, x0, t, noise)
    error = np.abs(process.to_x0(parameterisation, schedule, target, x, t) - x0).max(-1)
    alpha, sigma = schedule.at(t)
    # From noise, rounding errors grow by sigma / alpha.
    assert (error < 3e-6 * np.maximum(1.0, sigma / alpha)).all()


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_noise_is_rebuilt(name, draws):
    (x0, noise, t), schedule = draws, SCHEDULE_OF[name]
    x = process.add_noise(schedule, x0, t, noise)
    np.testing.assert_allclose(process.to_noise(schedule, x0, x, t), noise, atol=1e-4)
    # ... and any output has one noise and one clean action that together give x back.
    output = jnp.sin(x)
    for parameterisation in process.PARAMETERISATIONS:
        clean = process.to_x0(parameterisation, schedule, output, x, t)
        again = process.add_noise(schedule, clean, t, process.to_noise(schedule, clean, x, t))
        np.testing.assert_allclose(again, x, atol=1e-4)
        target = process.network_target(parameterisation, schedule, clean, t, process.to_noise(schedule, clean, x, t))
        np.testing.assert_allclose(target, output, atol=1e-3)


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_the_network_sees_actions_of_one_size(name):
    """Whatever the time, if clean actions have variance 1."""
    schedule, t = SCHEDULE_OF[name], jnp.array([0.1, 0.5, 1.0])
    x0, noise = jax.random.normal(jax.random.key(3), (2, 20_000, 3, 1))
    x = process.add_noise(schedule, x0, jnp.broadcast_to(t, x0.shape[:-1]), noise)
    seen = process.network_input(schedule, x, t)
    np.testing.assert_allclose(seen.std(axis=(0, 2)), 1.0, atol=0.02)


def test_edm_velocity_is_its_preconditioning(draws):
    """Karras et al. 2022, table 1, with data of size 1: x0 = c_skip x + c_out F."""
    (x0, noise, t), schedule = draws, SCHEDULE_OF["edm"]
    _, sigma = schedule.at(t)
    sigma = np.asarray(sigma)[:, None]
    x, output = process.add_noise(schedule, x0, t, noise), jnp.cos(x0)
    expected = x / (1 + sigma**2) + sigma / np.sqrt(1 + sigma**2) * -output
    np.testing.assert_allclose(process.to_x0("velocity", schedule, output, x, t), expected, atol=1e-5)
    np.testing.assert_allclose(process.network_input(schedule, x, t), x / np.sqrt(1 + sigma**2), rtol=1e-5)


# --- times -----------------------------------------------------------------------------------------------------------


def test_grid_times_are_uniform_from_1_to_k():
    t = np.asarray(process.sample_time(jax.random.key(1), make_schedule("vp", 5), (100, 200)))
    counts = np.bincount(np.round(t.ravel() * 5).astype(int), minlength=6)
    np.testing.assert_allclose(t * 5, np.round(t * 5), atol=1e-6)
    assert counts[0] == 0 and len(counts) == 6
    np.testing.assert_allclose(counts[1:] / 20_000, 0.2, atol=0.015)


def test_continuous_times_are_uniform_without_zero():
    t = np.asarray(process.sample_time(jax.random.key(1), SCHEDULE_OF["vp"], (20_000,)))
    assert t.min() > 0.0 and t.max() <= 1.0
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)


@pytest.mark.parametrize(("name", "mean", "deviation"), [("edm", -1.2, 1.2), ("vp", 0.0, 1.0), ("flow", 0.0, 1.0)])
def test_log_normal_times(name, mean, deviation):
    schedule = make_schedule(name, 5, "log_normal")
    alpha, sigma = schedule.at(process.sample_time(jax.random.key(1), schedule, (20_000,)))
    ratio = np.log(np.asarray(sigma) / np.asarray(alpha))
    assert ratio.mean() == pytest.approx(mean, abs=0.03) and ratio.std() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_time_of_a_ratio(name):
    t = jnp.linspace(0.02, 0.97, 30)
    alpha, sigma = SCHEDULE_OF[name].at(t)
    np.testing.assert_allclose(process.time_of(SCHEDULE_OF[name], sigma / alpha), t, atol=2e-4)


# --- weights of the loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "flow"])
@pytest.mark.parametrize("weights", ["min_snr", "edm"])
def test_weights_weigh_the_clean_actions_error_alike(weights, name, draws):
    """Whatever is predicted, an error of the clean action costs the same."""
    (x0, noise, t), schedule = draws, SCHEDULE_OF[name]
    x = process.add_noise(schedule, x0, t, noise)
    alpha, sigma = (np.asarray(a) for a in schedule.at(t))
    snr = (alpha / sigma) ** 2
    expected = np.minimum(snr, 5.0) if weights == "min_snr" else 1.0 + snr
    for parameterisation in process.PARAMETERISATIONS:
        target = process.network_target(parameterisation, schedule, x0, t, noise)
        output = target + 0.1
        error = (np.asarray(process.to_x0(parameterisation, schedule, output, x, t)) - np.asarray(x0))[:, 0] ** 2
        weight = np.asarray(process.loss_weight(weights, parameterisation, schedule, t))
        np.testing.assert_allclose(weight * 0.01, expected * error, rtol=2e-2)


def test_uniform_weights():
    for parameterisation in process.PARAMETERISATIONS:
        weight = process.loss_weight("uniform", parameterisation, FLOW, jnp.array([0.1, 1.0]))
        np.testing.assert_array_equal(weight, [1.0, 1.0])


@pytest.mark.parametrize("weights", process.LOSS_WEIGHTS)
@pytest.mark.parametrize("parameterisation", ["x0", "velocity", "flow"])
def test_weights_are_finite_at_the_end_of_the_straight_path(parameterisation, weights):
    assert np.isfinite(process.loss_weight(weights, parameterisation, FLOW, jnp.array([1.0])))


def test_bounds_by_hand():
    x0 = jnp.array([[2.0, -0.5], [0.3, -0.9], [-4.0, 1.0]])
    np.testing.assert_allclose(process.within_bounds("clip", x0), [[1.0, -0.5], [0.3, -0.9], [-1.0, 1.0]])
    np.testing.assert_allclose(process.within_bounds("scale", x0), [[1.0, -0.25], [0.3, -0.9], [-1.0, 0.25]])
