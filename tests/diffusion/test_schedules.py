"""Noise schedules against their formulas."""

import math

import numpy as np
import pytest

from llmdpd_jax.diffusion.schedules import SCHEDULES, cosine_betas, linear_betas, make_schedule, vp_betas
from llmdpd_jax.errors import UserError


@pytest.mark.parametrize("steps", [1, 5, 100])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_tables_are_a_variance_preserving_process(name, steps):
    schedule = make_schedule(name, steps)
    alphas, sigmas = np.asarray(schedule.alphas), np.asarray(schedule.sigmas)
    assert schedule.steps == steps and alphas.shape == sigmas.shape == (steps + 1,)
    np.testing.assert_allclose(alphas**2 + sigmas**2, 1.0, atol=1e-6)
    assert alphas[0] == 1.0 and sigmas[0] == 0.0
    assert (np.diff(alphas) < 0).all() and (np.diff(sigmas) >= 0).all() and sigmas[1] > 0 and alphas[-1] > 0


@pytest.mark.parametrize(("name", "steps"), [("vp", 100), ("linear", 100), ("linear", 1000), ("cosine", 100)])
def test_tables_are_the_running_product_of_the_betas(name, steps):
    schedule = make_schedule(name, steps)
    signal = 1.0
    for k, beta in enumerate(SCHEDULES[name](steps), start=1):
        signal *= 1.0 - beta
        assert schedule.alphas[k] == pytest.approx(math.sqrt(signal), rel=1e-5)


@pytest.mark.parametrize(("name", "largest"), [("vp", 0.1), ("linear", 0.01), ("cosine", 0.01)])
def test_the_last_step_is_nearly_noise(name, largest):
    assert make_schedule(name, 100).alphas[-1] < largest


def test_vp_betas_by_hand():
    # 1 - exp(-0.1 / 5 - (10 - 0.1) (2k - 1) / (2 25)) for k = 1 .. 5: exponents 0.218, 0.614, 1.01, 1.406, 1.802
    expected = [1 - math.exp(-e) for e in (0.218, 0.614, 1.01, 1.406, 1.802)]
    np.testing.assert_allclose(vp_betas(5), expected, rtol=1e-12)
    # The exponents add up to beta_min + (beta_max - beta_min) / 2 whatever K.
    for steps in (5, 50):
        assert make_schedule("vp", steps).alphas[-1] == pytest.approx(math.exp(-5.05 / 2), rel=1e-5)


def test_linear_betas_are_those_of_ddpm_at_1000_steps():
    betas = linear_betas(1000)
    assert betas[0] == pytest.approx(1e-4) and betas[-1] == pytest.approx(2e-2)
    np.testing.assert_allclose(np.diff(betas), np.diff(betas)[0], rtol=1e-9)


def test_cosine_signal_by_hand():
    def signal(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    schedule = make_schedule("cosine", 10)
    for k in range(10):  # the last one is clipped
        assert schedule.alphas[k] ** 2 == pytest.approx(signal(k / 10) / signal(0), rel=1e-5)
    assert cosine_betas(10)[-1] == 0.999


def test_bad_choices_are_user_errors():
    with pytest.raises(UserError, match=r"diffusion\.schedule: 'sigmoid' is unknown.*cosine.*linear.*vp"):
        make_schedule("sigmoid", 5)
    with pytest.raises(UserError, match=r"diffusion\.steps: 0"):
        make_schedule("vp", 0)
