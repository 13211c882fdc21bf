"""Samplers with the exact denoiser (posterior mean) of distributions whose samples are known."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import draw_mixture, mixture_denoiser, sliced_wasserstein

from llmdpd_jax.config import default_config
from llmdpd_jax.diffusion.samplers import (
    SAMPLERS,
    TABLES,
    by_table,
    ddim_table,
    make_grid,
    network_calls,
    sample,
    stack_tables,
    walk,
)
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.errors import UserError

ONE_GAUSSIAN = np.array([[0.4, -0.7]], np.float32), np.ones(1, np.float32), 0.5  # mean, weight, standard deviation
VP = make_schedule("vp", 20)
EVERY = {name: make_schedule(name, 20, "continuous") for name in ("vp", "linear", "cosine", "edm", "flow")}
COUNT = 4000


def gaussian_gains(grid, std, eta):
    """For x0 ~ N(mean, std²): each step maps z = x - alpha mean to gain z + spread noise. By hand from the posterior.

    With v = alpha² std² + sigma² the clean estimate is mean + alpha std² z / v and the noise estimate sigma z / v.
    """
    gains, spreads = [], []
    for (a, a_next), (s, s_next) in zip(pairwise(grid.alphas), pairwise(grid.sigmas), strict=True):
        v = a**2 * std**2 + s**2
        spread = eta * np.sqrt(s_next**2 / s**2 * (1 - a**2 / a_next**2))
        gains.append(a_next * a * std**2 / v + np.sqrt(s_next**2 - spread**2) * s / v)
        spreads.append(spread)
    return np.array(gains), np.array(spreads)


# --- a mixture of Gaussians ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_samplers_recover_a_mixture(sampler, name):
    """Sliced Wasserstein distance from the mixture, from which another draw of COUNT is 0.01 apart."""
    schedule, truth = EVERY[name], draw_mixture(COUNT, 3)
    distances = [
        sliced_wasserstein(
            sample(sampler, mixture_denoiser(schedule), schedule, jax.random.key(0), (COUNT, 2), steps), truth
        )
        for steps in (5, 20, 50)
    ]
    assert distances[1] < 0.08 and distances[2] < 0.04, distances
    assert distances[0] > distances[1] and distances[1] > distances[2] - 0.005, distances


def test_the_default_of_five_steps_is_near_already():
    config = default_config()
    schedule = make_schedule(config.diffusion.schedule, config.diffusion.steps, config.diffusion.time_draw)
    steps = config.evaluation.steps
    draw = sample("ddim", mixture_denoiser(schedule), schedule, jax.random.key(0), (COUNT, 2), steps)
    assert steps == 5 and sliced_wasserstein(draw, draw_mixture(COUNT, 3)) < 0.13


def error_of_ode(sampler, schedule, steps):
    """Mean distance from where the probability flow takes noise, for a single Gaussian, whose flow is known."""
    mean, weights, std = ONE_GAUSSIAN
    x = jax.random.normal(jax.random.key(3), (200, 2)) * make_grid(schedule, 1).sigmas[0]
    grid = make_grid(schedule, steps)
    end = SAMPLERS[sampler](mixture_denoiser(schedule, mean, weights, std), grid, jax.random.key(0), x)
    a, s = grid.alphas[0], grid.sigmas[0]
    # The flow keeps what x is of its own standard deviation.
    exact = mean + std * (np.asarray(x) - a * mean) / np.sqrt(a**2 * std**2 + s**2)
    return np.linalg.norm(np.asarray(end) - exact, axis=-1).mean()


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm_solver", 2), ("heun", 2), ("midpoint", 2)])
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_error_falls_with_steps_as_the_order_says(sampler, order, name):
    """Four times the steps: a quarter of the error of a first-order method, about a sixteenth of a second-order one.

    About, for the steps from pure noise and to none are of first order, and 20 steps are few.
    """
    few, many = (error_of_ode(sampler, EVERY[name], steps) for steps in (20, 80))
    if order == 1:
        assert 3.4 < few / many < 4.8
    else:
        assert few / many > 6.0
        assert few < error_of_ode("ddim", EVERY[name], 20)


@pytest.mark.parametrize("name", ["vp", "edm"])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_temperature_scales_all_noise(sampler, name):
    """Of a Gaussian every step is linear in what is there and in the noise that is added: so is the sample."""
    mean, weights, std = ONE_GAUSSIAN
    denoise = mixture_denoiser(EVERY[name], mean, weights, std)

    def draw(temperature):
        return np.asarray(
            sample(sampler, denoise, EVERY[name], jax.random.key(0), (500, 2), 5, temperature=temperature)
        )

    cold, warm = draw(0.0), draw(1.0)
    np.testing.assert_allclose(cold, np.broadcast_to(cold[0], cold.shape), atol=1e-6)
    np.testing.assert_allclose(cold[0], mean[0], atol=0.03)  # five steps are few
    np.testing.assert_allclose(draw(0.25), 0.25 * warm + 0.75 * cold, atol=1e-4)
    assert warm.std(0).min() > 0.1


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_ddim_of_a_gaussian_is_the_known_linear_map(steps):
    mean, weights, std = ONE_GAUSSIAN
    grid = make_grid(VP, steps)
    x = jax.random.normal(jax.random.key(3), (40, 2))
    gains, _ = gaussian_gains(grid, std, 0.0)
    expected = mean + gains.prod() * (np.asarray(x) - grid.alphas[0] * mean)
    found = SAMPLERS["ddim"](mixture_denoiser(VP, mean, weights, std), grid, jax.random.key(0), x)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("eta", "steps"), [(1.0, 20), (1.0, 4), (0.5, 4)])
def test_stochastic_samples_of_a_gaussian_have_the_known_moments(eta, steps):
    mean, weights, std = ONE_GAUSSIAN
    grid, start = make_grid(VP, steps), np.array([1.5, -0.5], np.float32)
    x = jnp.broadcast_to(start, (20_000, 2))
    sampler = by_table(partial(ddim_table, eta=eta))
    x = np.asarray(sampler(mixture_denoiser(VP, mean, weights, std), grid, jax.random.key(1), x))
    gains, spreads = gaussian_gains(grid, std, eta)
    offset = gains.prod() * (start - grid.alphas[0] * mean)
    variance = 0.0
    for gain, spread in zip(gains, spreads, strict=True):
        variance = gain**2 * variance + spread**2
    np.testing.assert_allclose(x.mean(0), (mean + offset)[0], atol=0.01)
    np.testing.assert_allclose(x.std(0), np.sqrt(variance), rtol=0.02)


def test_an_ancestral_step_is_the_posterior_of_ddpm():
    """Ho et al. 2020, eq. 6 and 7, by hand for the step 2 -> 1 of K = 2."""
    schedule = make_schedule("vp", 2)
    bar_1, bar_2 = (float(schedule.at(t)[0]) ** 2 for t in (0.5, 1.0))
    beta_2 = 1 - bar_2 / bar_1
    clean, start = 0.3, 1.2

    def denoise(x, t):  # at the last time hands on what the step before gave
        return jnp.where(t[:, None] < 0.75, x, clean)

    x = SAMPLERS["ancestral"](denoise, make_grid(schedule, 2), jax.random.key(2), jnp.full((100_000, 1), start))
    x = np.asarray(x)
    mean = np.sqrt(bar_1) * beta_2 / (1 - bar_2) * clean + np.sqrt(1 - beta_2) * (1 - bar_1) / (1 - bar_2) * start
    assert x.mean() == pytest.approx(mean, abs=0.01)
    assert x.var() == pytest.approx((1 - bar_1) / (1 - bar_2) * beta_2, rel=0.02)


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_last_step_gives_the_clean_estimate_without_noise(sampler, name):
    for steps in (1, 5):
        out = sample(sampler, lambda x, t: jnp.full_like(x, 0.25), EVERY[name], jax.random.key(1), (9, 2), steps)
        np.testing.assert_allclose(out, 0.25, atol=1e-5)


# --- grids -----------------------------------------------------------------------------------------------------------


def test_times_of_a_trained_grid():
    ten = make_schedule("vp", 10)
    np.testing.assert_allclose(make_grid(ten, 10).times * 10, np.arange(10, 0, -1), atol=1e-9)
    np.testing.assert_allclose(make_grid(ten, 5).times * 10, [10, 8, 6, 4, 2], atol=1e-9)
    np.testing.assert_allclose(make_grid(ten, 3).times * 10, [10, 7, 3], atol=1e-9)
    np.testing.assert_allclose(make_grid(make_schedule("vp", 5), 2).times * 5, [5, 2], atol=1e-9)
    for steps in range(1, 11):
        times = make_grid(ten, steps).times * 10
        assert len(times) == steps and (np.diff(times) < -0.5).all() and times[-1] > 0.5
        np.testing.assert_allclose(times, np.round(times), atol=1e-9)


def test_a_warm_start_is_at_a_time_of_the_grid():
    """The action is noised as much as the denoiser is told."""
    five, start = make_schedule("vp", 5), jnp.full((4000, 1), 0.5)
    np.testing.assert_allclose(make_grid(five, 2, 0.55).times * 5, [3, 1], atol=1e-9)
    np.testing.assert_allclose(make_grid(five, 1, 0.01).times * 5, [1], atol=1e-9)
    for steps in (1, 2, 3):
        times = make_grid(five, steps, 0.55).times * 5
        assert (np.diff(times) < -0.5).all() and times[0] == pytest.approx(3)
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(x), np.asarray(t))), x, t)
        return x

    sample("ddim", denoise, five, jax.random.key(0), start.shape, 1, (start, 0.55))
    jax.effects_barrier()
    alpha, sigma = five.at(0.6)
    np.testing.assert_allclose(seen[0][1], 0.6, rtol=1e-6)
    assert seen[0][0].mean() == pytest.approx(0.5 * float(alpha), abs=0.05)
    assert seen[0][0].std() == pytest.approx(float(sigma), rel=0.05)


def test_times_of_other_denoisers_are_even():
    np.testing.assert_allclose(make_grid(EVERY["vp"], 4).times, [1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(make_grid(EVERY["vp"], 2, start=0.3).times, [0.3, 0.15])
    np.testing.assert_allclose(make_grid(EVERY["edm"], 3).times, [1.0, 0.5, 0.0])
    assert make_grid(EVERY["flow"], 3).alphas[-1] == 1.0 and make_grid(EVERY["edm"], 3).sigmas[-1] == 0.0


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_network_calls(sampler):
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t).tolist()), t, ordered=True)
        return x

    sample(sampler, denoise, EVERY["flow"], jax.random.key(0), (2, 1), 3)
    jax.effects_barrier()
    assert len(seen) == network_calls(sampler, 3) and seen[0] == [1.0]


def test_the_denoiser_sees_the_times_of_the_grid():
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t).tolist()), t, ordered=True)
        return x

    sample("ddim", denoise, make_schedule("vp", 10), jax.random.key(0), (2, 1), 3)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [[1.0], [0.7], [0.3]], rtol=1e-6)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_samplers_side_by_side_are_each_by_itself(name):
    """One compiled call over a stack of tables, the shorter ones with idle calls."""
    denoise, x = mixture_denoiser(EVERY[name]), jax.random.normal(jax.random.key(0), (16, 2))
    cases = [(sampler, steps) for sampler in ("ddim", "dpm_solver", "heun", "midpoint") for steps in (1, 2, 5)]
    tables = [TABLES[sampler](make_grid(EVERY[name], steps)) for sampler, steps in cases]
    assert [len(table.times) for table in tables] == [network_calls(*case) for case in cases]
    x = x * make_grid(EVERY[name], 1).sigmas[0]
    swept = jax.jit(jax.vmap(lambda table: walk(table, denoise, jax.random.key(1), x)))(stack_tables(tables))
    for (sampler, steps), found in zip(cases, swept, strict=True):
        alone = SAMPLERS[sampler](denoise, make_grid(EVERY[name], steps), jax.random.key(1), x)
        # Rounding is of the size of what is added up: with the schedule "edm" of numbers up to 80.
        largest = max(1.0, float(np.abs(alone).max()))
        np.testing.assert_allclose(found, alone, atol=5e-6 * largest)


def test_stochastic_samplers_side_by_side_add_the_noise_of_their_table():
    mean, weights, std = ONE_GAUSSIAN
    denoise, x = mixture_denoiser(VP, mean, weights, std), jax.random.normal(jax.random.key(0), (20_000, 2))
    tables = [TABLES[sampler](make_grid(VP, steps)) for sampler, steps in (("ancestral", 3), ("dpm_solver_sde", 5))]
    swept = jax.vmap(lambda table: walk(table, denoise, jax.random.key(1), x))(stack_tables(tables))
    for table, found in zip(tables, swept, strict=True):
        alone = walk(table, denoise, jax.random.key(1), x)
        np.testing.assert_allclose(np.mean(found, 0), np.mean(alone, 0), atol=0.02)
        np.testing.assert_allclose(np.std(found, 0), np.std(alone, 0), rtol=0.02)


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_only_stochastic_samplers_use_the_key(sampler):
    denoise, grid = mixture_denoiser(EVERY["vp"]), make_grid(EVERY["vp"], 5)
    x = jax.random.normal(jax.random.key(0), (8, 2))
    first, again, other = (SAMPLERS[sampler](denoise, grid, jax.random.key(s), x) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    if sampler in ("ancestral", "dpm_solver_sde"):
        assert (np.abs(first - other) > 1e-3).any(axis=1).all()
    else:
        np.testing.assert_array_equal(first, other)


def test_a_warm_start_stays_near():
    """Noised to an early time and sampled from there, an action stays in its mode; from noise it may go anywhere."""
    schedule, start = EVERY["flow"], jnp.tile(jnp.array([[-1.0, 0.0]]), (500, 1))

    def near(t, steps):
        x = sample("ddim", mixture_denoiser(schedule), schedule, jax.random.key(0), start.shape, steps, (start, t))
        return float((jnp.linalg.norm(x - start, axis=-1) < 0.7).mean())

    assert near(0.2, 2) > 0.97
    assert near(1.0, 20) < 0.6


def test_one_compilation_for_all_keys():
    traces = []

    @jax.jit
    def draw(key):
        traces.append(1)
        return sample("dpm_solver", mixture_denoiser(EVERY["vp"]), EVERY["vp"], key, (4, 2), 6)

    assert np.abs(draw(jax.random.key(0)) - draw(jax.random.key(1))).max() > 1e-3 and len(traces) == 1


# --- errors ----------------------------------------------------------------------------------------------------------


def test_bad_choices_are_user_errors():
    def draw(name="ddim", steps=5, schedule=make_schedule("vp", 5), **options):  # noqa: B008
        return sample(name, lambda x, t: x, schedule, jax.random.key(0), (2, 1), steps, **options)

    for steps in (0, 6):
        with pytest.raises(UserError, match=f"sampler steps: {steps} is out of range"):
            draw(steps=steps)
    with pytest.raises(UserError, match=r"sampler steps: 4 is out of range.* 1 to 3 .*continuous"):
        draw(steps=4, warm_start=(jnp.zeros((2, 1)), 0.6))
    with pytest.raises(UserError, match=r"sampler start: 0\.0"):
        draw(schedule=EVERY["vp"], warm_start=(jnp.zeros((2, 1)), 0.0))
    with pytest.raises(UserError, match=r"'midpoint' visits times off a grid"):
        draw("midpoint")
    with pytest.raises(UserError, match=r"'euler' is unknown.*ancestral.*ddim.*heun"):
        draw("euler")
