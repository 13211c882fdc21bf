"""Noise schedules against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.diffusion.schedules import SCHEDULES, make_schedule
from llmdpd_jax.errors import UserError

DRAW = {"edm": "log_normal"}  # the only schedule that cannot be trained on a grid


def curve(name, times):
    return (np.asarray(a) for a in make_schedule(name, 5, DRAW.get(name, "grid")).at(np.asarray(times)))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_noise_grows_and_the_action_fades(name):
    alpha, sigma = curve(name, np.linspace(0, 1, 201))
    assert alpha.dtype == sigma.dtype == np.float32
    assert np.isfinite(alpha).all() and np.isfinite(sigma).all() and (alpha >= 0).all()
    assert (np.diff(alpha) <= 0).all() and (np.diff(sigma) >= -1e-7).all()
    with np.errstate(divide="ignore"):
        assert (np.diff(sigma / alpha) > 0).all()
    assert alpha[0] == 1.0 and sigma[0] <= 0.002


@pytest.mark.parametrize("name", ["vp", "linear", "cosine"])
def test_variance_is_preserved(name):
    alpha, sigma = curve(name, np.linspace(0, 1, 1001))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=1e-6)
    assert make_schedule(name, 5).variance_preserving
    assert not any(make_schedule(n, 5, "continuous").variance_preserving for n in ("edm", "flow"))


@pytest.mark.parametrize(("name", "largest"), [("vp", 0.1), ("linear", 0.01), ("cosine", 1e-4), ("flow", 0.0)])
def test_the_end_is_nearly_noise(name, largest):
    alpha, sigma = curve(name, 1.0)
    assert alpha <= largest and sigma == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("steps", [5, 50])
def test_vp_is_the_product_of_diffusion_qls_variances(steps):
    # 1 - beta_k = exp(-0.1 / K - (10 - 0.1) (2k - 1) / (2 K²))
    exponents = [0.1 / steps + 9.9 * (2 * k - 1) / (2 * steps**2) for k in range(1, steps + 1)]
    alpha, _ = curve("vp", np.arange(1, steps + 1) / steps)
    np.testing.assert_allclose(alpha, np.exp(-0.5 * np.cumsum(exponents)), rtol=1e-5)
    assert alpha[-1] == pytest.approx(math.exp(-5.05 / 2), rel=1e-5)


def test_linear_is_the_product_of_ddpms_variances():
    alpha, _ = curve("linear", np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(alpha, np.sqrt(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))), rtol=2e-5)


def test_cosine_by_hand():
    def signal(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha, _ = curve("cosine", [0.3, 0.9, 0.999, 1.0])
    expected = [signal(t) / signal(0) for t in (0.3, 0.9, 0.999)]
    np.testing.assert_allclose(alpha**2, [*expected, expected[-1] * 1e-3], rtol=1e-3)
    np.testing.assert_allclose(alpha[:2] ** 2, expected[:2], rtol=1e-5)


def test_edm_by_hand():
    alpha, sigma = curve("edm", [0.0, 0.5, 1.0])
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    np.testing.assert_allclose(sigma, [0.002, middle, 80.0], rtol=2e-5)
    np.testing.assert_array_equal(alpha, 1.0)


def test_flow_is_a_straight_line():
    alpha, sigma = curve("flow", [0.0, 0.25, 1.0])
    np.testing.assert_array_equal(alpha, [1.0, 0.75, 0.0])
    np.testing.assert_array_equal(sigma, [0.0, 0.25, 1.0])


def test_a_schedule_is_static():
    calls = []

    @jax.jit
    def alpha(t):
        calls.append(1)
        return make_schedule("vp", 5).at(t)[0]

    assert hash(make_schedule("vp", 5)) == hash(make_schedule("vp", 5)) and len({make_schedule("vp", 5)} | {1}) == 2
    np.testing.assert_allclose(alpha(jnp.array(0.4)), make_schedule("vp", 5).at(0.4)[0], rtol=1e-6)
    alpha(jnp.array(0.5))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sigmoid", 5), r"diffusion\.schedule: 'sigmoid' is unknown.*cosine.*edm.*flow.*linear.*vp"),
        (("vp", 0), r"diffusion\.steps: 0"),
        (("vp", 5, "often"), r"diffusion\.time_draw: 'often' is unknown.*continuous"),
        (("edm", 5), r"diffusion\.time_draw: 'grid'.*'log_normal'"),
    ],
)
def test_bad_choices_are_user_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        make_schedule(*arguments)
