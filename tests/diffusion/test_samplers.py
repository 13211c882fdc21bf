"""Samplers with the exact denoiser (posterior mean) of distributions whose samples are known."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.diffusion.samplers import ancestral, ddim, sample, step_sequence
from llmdpd_jax.diffusion.schedules import make_schedule, vp_betas
from llmdpd_jax.errors import UserError

MEANS = np.array([[1.0, 0.5], [-1.0, 0.0], [0.3, -1.0]], np.float32)
WEIGHTS = np.array([0.5, 0.3, 0.2], np.float32)
STD = 0.2
COUNT = 6000


def mixture_denoiser(schedule, means=MEANS, weights=WEIGHTS, std=STD):
    """E[x0 | x_k] of a Gaussian mixture: x [n, 2], k [n] -> [n, 2]."""

    def denoise(x, k):
        alpha, sigma = schedule.alphas[k][:, None], schedule.sigmas[k][:, None]
        variance = alpha**2 * std**2 + sigma**2
        offset = x[:, None] - alpha[..., None] * means  # [n, modes, 2]
        log_weights = jnp.log(weights) - (offset**2).sum(-1) / (2 * variance)
        posterior = means + (alpha * std**2 / variance)[..., None] * offset
        return (jax.nn.softmax(log_weights)[..., None] * posterior).sum(1)

    return denoise


def draw_mixture(seed):
    rng = np.random.default_rng(seed)
    return MEANS[rng.choice(3, COUNT, p=WEIGHTS)] + STD * rng.standard_normal((COUNT, 2)).astype(np.float32)


def sliced_wasserstein(a, b, directions=32):
    angles = np.arange(directions) * np.pi / directions
    project = np.stack([np.cos(angles), np.sin(angles)])
    return np.abs(np.sort(a @ project, 0) - np.sort(b @ project, 0)).mean()


def gaussian_gains(schedule, sequence, std, eta):
    """For x0 ~ N(mean, std²): each step maps z = x - alpha mean to gain z + spread noise. By hand from the posterior.

    With v = alpha² std² + sigma² the clean estimate is mean + alpha std² z / v and the noise estimate sigma z / v.
    """
    alphas, sigmas = np.asarray(schedule.alphas, np.float64), np.asarray(schedule.sigmas, np.float64)
    gains, spreads = [], []
    for k, k_next in pairwise(sequence):
        a, s, a_next, s_next = alphas[k], sigmas[k], alphas[k_next], sigmas[k_next]
        v = a**2 * std**2 + s**2
        spread = eta * np.sqrt(s_next**2 / s**2 * (1 - a**2 / a_next**2))
        gains.append(a_next * a * std**2 / v + np.sqrt(s_next**2 - spread**2) * s / v)
        spreads.append(spread)
    return np.array(gains), np.array(spreads)


def gaussian_variance(schedule, sequence, std, eta, start):
    """Variance of the samples when that of z at step K is `start`. Tends to std² as the steps become many."""
    variance = start
    for gain, spread in zip(*gaussian_gains(schedule, sequence, std, eta), strict=True):
        variance = gain**2 * variance + spread**2
    return variance


@pytest.mark.parametrize("schedule_name", ["vp", "cosine"])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_samplers_recover_a_mixture(sampler, schedule_name):
    schedule = make_schedule(schedule_name, 100)
    x = np.asarray(sample(sampler, mixture_denoiser(schedule), schedule, jax.random.key(0), (COUNT, 2)))
    # With posterior variances 100 ancestral steps give modes 10 % too narrow; how much is known for each mode alone.
    variance = gaussian_variance(schedule, range(100, -1, -1), STD, float(sampler == "ancestral"), 1.0)
    assert variance == pytest.approx(STD**2, rel=0.25)
    nearest = ((x[:, None] - MEANS) ** 2).sum(-1).argmin(1)
    np.testing.assert_allclose(np.bincount(nearest) / COUNT, WEIGHTS, atol=0.03)
    for mode in range(3):
        members = x[nearest == mode]
        np.testing.assert_allclose(members.mean(0), MEANS[mode], atol=0.03)
        np.testing.assert_allclose(np.cov(members.T), variance * np.eye(2), atol=0.004)
    noise_floor = sliced_wasserstein(draw_mixture(1), draw_mixture(2))
    assert sliced_wasserstein(x, draw_mixture(3)) < noise_floor + 0.03


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_ddim_of_a_gaussian_is_the_known_linear_map(steps):
    schedule, mean, std = make_schedule("vp", 20), np.array([[0.4, -0.7]], np.float32), 0.5
    denoise = mixture_denoiser(schedule, mean, np.ones(1, np.float32), std)
    x = jax.random.normal(jax.random.key(3), (40, 2))
    gains, _ = gaussian_gains(schedule, step_sequence(schedule, steps), std, 0.0)
    expected = mean + gains.prod() * (np.asarray(x) - schedule.alphas[-1] * mean)
    np.testing.assert_allclose(ddim(denoise, schedule, jax.random.key(0), x, steps), expected, atol=2e-5)


@pytest.mark.parametrize(("eta", "steps"), [(1.0, 20), (1.0, 4), (0.5, 4)])
def test_stochastic_samples_of_a_gaussian_have_the_known_moments(eta, steps):
    schedule, mean, std = make_schedule("vp", 20), np.array([[0.4, -0.7]], np.float32), 0.5
    denoise = mixture_denoiser(schedule, mean, np.ones(1, np.float32), std)
    start = np.array([1.5, -0.5], np.float32)
    x = jnp.broadcast_to(start, (20_000, 2))
    x = np.asarray(ddim(denoise, schedule, jax.random.key(1), x, steps, eta))
    sequence = step_sequence(schedule, steps)
    offset = gaussian_gains(schedule, sequence, std, eta)[0].prod() * (start - schedule.alphas[-1] * mean)
    variance = gaussian_variance(schedule, sequence, std, eta, 0.0)
    np.testing.assert_allclose(x.mean(0), (mean + offset)[0], atol=0.01)
    np.testing.assert_allclose(x.std(0), np.sqrt(variance), rtol=0.02)


def test_an_ancestral_step_is_the_posterior_of_ddpm():
    """Ho et al. 2020, eq. 6 and 7, by hand for the step 2 -> 1 of K = 2."""
    schedule, (beta_1, beta_2) = make_schedule("vp", 2), vp_betas(2)
    bar_1, bar_2 = 1 - beta_1, (1 - beta_1) * (1 - beta_2)
    clean, start = 0.3, 1.2

    def denoise(x, k):  # at k = 1 hands on what the step 2 -> 1 gave
        return jnp.where(k[:, None] == 1, x, clean)

    x = np.asarray(ancestral(denoise, schedule, jax.random.key(2), jnp.full((100_000, 1), start), 2))
    mean = np.sqrt(bar_1) * beta_2 / (1 - bar_2) * clean + np.sqrt(1 - beta_2) * (1 - bar_1) / (1 - bar_2) * start
    assert x.mean() == pytest.approx(mean, abs=0.01)
    assert x.var() == pytest.approx((1 - bar_1) / (1 - bar_2) * beta_2, rel=0.02)


def test_the_last_step_gives_the_clean_estimate_without_noise():
    schedule = make_schedule("vp", 5)
    x = jax.random.normal(jax.random.key(0), (9, 2))
    for sampler in (ddim, ancestral):
        out = sampler(lambda x, k: jnp.full_like(x, 0.25), schedule, jax.random.key(1), x, 5)
        np.testing.assert_allclose(out, 0.25, atol=1e-7)


def test_step_subsequences():
    schedule = make_schedule("vp", 10)
    np.testing.assert_array_equal(step_sequence(schedule, 10), np.arange(10, -1, -1))
    np.testing.assert_array_equal(step_sequence(schedule, 5), [10, 8, 6, 4, 2, 0])
    np.testing.assert_array_equal(step_sequence(schedule, 1), [10, 0])
    for steps in range(1, 11):
        sequence = step_sequence(schedule, steps)
        assert len(sequence) == steps + 1 and (np.diff(sequence) < 0).all() and sequence[0] == 10 and sequence[-1] == 0


def test_the_denoiser_sees_the_steps_of_the_sequence():
    schedule, seen = make_schedule("vp", 10), []

    def denoise(x, k):
        jax.debug.callback(lambda k: seen.append(np.asarray(k).tolist()), k, ordered=True)
        return x

    ddim(denoise, schedule, jax.random.key(0), jnp.ones((2, 1)), 3)
    jax.effects_barrier()
    assert seen == [[10, 10], [7, 7], [3, 3]]


def test_ddim_ignores_the_key_and_ancestral_does_not():
    schedule = make_schedule("vp", 5)
    denoise = mixture_denoiser(schedule)
    x = jax.random.normal(jax.random.key(0), (8, 2))
    one, two = (jax.random.key(s) for s in (1, 2))
    np.testing.assert_array_equal(ddim(denoise, schedule, one, x, 5), ddim(denoise, schedule, two, x, 5))
    first = ancestral(denoise, schedule, one, x, 5)
    np.testing.assert_array_equal(first, ancestral(denoise, schedule, one, x, 5))
    assert (np.abs(first - ancestral(denoise, schedule, two, x, 5)) > 1e-3).any(axis=1).all()


def test_bad_choices_are_user_errors():
    schedule = make_schedule("vp", 5)
    for steps in (0, 6):
        with pytest.raises(UserError, match=f"sampler steps: {steps} is out of range.* 1 to 5"):
            sample("ddim", lambda x, k: x, schedule, jax.random.key(0), (2, 1), steps)
    with pytest.raises(UserError, match=r"'euler' is unknown.*ancestral.*ddim"):
        sample("euler", lambda x, k: x, schedule, jax.random.key(0), (2, 1))
