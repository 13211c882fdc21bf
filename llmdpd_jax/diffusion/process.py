"""The forward process, what a network may predict about it, and how errors of its predictions are weighed."""

import jax.numpy as jnp

from llmdpd_jax import draws
from llmdpd_jax.diffusion.schedules import EDM_RHO, EDM_SIGMAS, Schedule
from llmdpd_jax.types import Array

PARAMETERISATIONS = ("noise", "x0", "velocity", "flow")
BOUNDS = ("clip", "scale")
LOSS_WEIGHTS = ("uniform", "min_snr", "edm")
MIN_SNR_GAMMA = 5.0
LOG_NORMAL = -1.2, 1.2  # mean and deviation of log sigma (EDM, table 1)


def _at(schedule: Schedule, t: Array) -> tuple[Array, Array]:
    """alpha and sigma [..., 1] at times t [...]."""
    alpha, sigma = schedule.at(t)
    return alpha[..., None], sigma[..., None]


def _unit(schedule: Schedule, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """alpha and sigma divided by the size of x, actions being of size 1: cosine and sine of one angle."""
    if schedule.variance_preserving:
        return alpha, sigma
    size = jnp.sqrt(alpha**2 + sigma**2)
    return alpha / size, sigma / size


def add_noise(schedule: Schedule, x0: Array, t: Array, noise: Array) -> Array:
    """`x_t = alpha(t) x_0 + sigma(t) noise`. x0 and noise [..., A], t [...] -> [..., A]."""
    alpha, sigma = _at(schedule, t)
    return alpha * x0 + sigma * noise


def network_input(schedule: Schedule, x: Array, t: Array) -> Array:
    """The noised action [..., A] in units in which it is of size 1 at any time (c_in of EDM, eq. 7)."""
    if schedule.variance_preserving:
        return x
    alpha, sigma = _at(schedule, t)
    return x / jnp.sqrt(alpha**2 + sigma**2)


def sample_time(key: Array, schedule: Schedule, shape: tuple[int, ...]) -> Array:
    """Times to train on, float32 of the given shape, by `schedule.draw`.

    "grid": 1/K, 2/K, ..., 1, all as often (DDPM); "continuous": uniform over (0, 1]; "log_normal": such that the log of
    sigma / alpha is normal (EDM; on the flow schedule the logit-normal of Esser et al. 2024).
    """
    if schedule.draw == "grid":
        return draws.integers(key, shape, 1, schedule.steps + 1) / schedule.steps
    if schedule.draw == "continuous":
        return 1.0 - draws.uniform(key, shape)
    mean, deviation = LOG_NORMAL if schedule.name == "edm" else (0.0, 1.0)
    return time_of(schedule, jnp.exp(mean + deviation * draws.normal(key, shape)))


def time_of(schedule: Schedule, ratio: Array) -> Array:
    """The time [...] at which sigma / alpha is `ratio` [...], the nearest one there is."""
    if schedule.name == "edm":
        low, high = (sigma ** (1 / EDM_RHO) for sigma in EDM_SIGMAS)
        return jnp.clip((ratio ** (1 / EDM_RHO) - low) / (high - low), 0.0, 1.0)
    times = jnp.linspace(1e-4, 1.0, 4096)
    alpha, sigma = schedule.at(times)
    return jnp.interp(jnp.log(ratio), jnp.log(sigma) - jnp.log(jnp.maximum(alpha, 1e-9)), times)


def network_target(parameterisation: str, schedule: Schedule, x0: Array, t: Array, noise: Array) -> Array:
    """What the network should output for a noised action. x0 and noise [..., A], t [...] -> [..., A].

    "velocity" is `cos noise - sin x_0` where cos and sin are alpha and sigma in units in which x is of size 1 (Salimans
    & Ho 2022); on the EDM schedule it is what EDM's preconditioning makes a network predict, but for the sign. "flow"
    is `noise - x_0` (flow matching).
    """
    if parameterisation == "noise":
        return noise
    if parameterisation == "x0":
        return x0
    if parameterisation == "flow":
        return noise - x0
    cos, sin = _unit(schedule, *_at(schedule, t))
    return cos * noise - sin * x0


def to_x0(parameterisation: str, schedule: Schedule, output: Array, x: Array, t: Array) -> Array:
    """The clean action that a network output stands for. output and x [..., A], t [...] (> 0) -> [..., A]."""
    if parameterisation == "x0":
        return output
    alpha, sigma = _at(schedule, t)
    if parameterisation == "noise":
        return (x - sigma * output) / alpha
    if parameterisation == "flow":
        return (x - sigma * output) / (alpha + sigma)
    cos, sin = _unit(schedule, alpha, sigma)
    return cos * network_input(schedule, x, t) - sin * output


def within_bounds(bounds: str, x0: Array) -> Array:
    """A clean action [..., A] within [-1, 1]: what lies outside is cut off ("clip"), or all of it shrinks ("scale").

    "scale" keeps an action's direction where guidance exaggerates it: dynamic thresholding (Saharia et al. 2022, arXiv
    2205.11487, section 2.3) with the largest entry for the threshold.
    """
    if bounds == "clip":
        return jnp.clip(x0, -1.0, 1.0)
    return x0 / jnp.maximum(1.0, jnp.max(jnp.abs(x0), axis=-1, keepdims=True))


def to_noise(schedule: Schedule, x0: Array, x: Array, t: Array) -> Array:
    """The noise that turns x0 into x at time t. x0 and x [..., A], t [...] (> 0) -> [..., A]."""
    alpha, sigma = _at(schedule, t)
    return (x - alpha * x0) / sigma


def loss_weight(weights: str, parameterisation: str, schedule: Schedule, t: Array) -> Array:
    """What the squared error of the network's output is multiplied by, at times t [...] -> [...].

    "uniform" is 1 whatever is predicted. "min_snr" and "edm" weigh the error of the clean action that the output stands
    for: by min(SNR, 5) (Hang et al. 2023, arXiv 2303.09556) and by 1 + SNR (Karras et al. 2022, eq. 2 and table 1,
    actions being of size 1), SNR = alpha² / sigma².
    """
    if weights == "uniform":
        return jnp.ones(jnp.shape(t))
    alpha, sigma = schedule.at(t)
    # Each case is (weight of x0's error) * (d x0 / d output)², with what tends to infinity cancelled by hand.
    size = alpha**2 + sigma**2
    if weights == "edm":  # (size / sigma²)
        return {
            "x0": size / sigma**2,
            "noise": size / alpha**2,
            "velocity": jnp.ones_like(size),
            "flow": size / (alpha + sigma) ** 2,
        }[parameterisation]
    signal = jnp.minimum(alpha**2, MIN_SNR_GAMMA * sigma**2)  # sigma² min(SNR, gamma)
    return {
        "x0": signal / sigma**2,
        "noise": signal / alpha**2,
        "velocity": signal / size,
        "flow": signal / (alpha + sigma) ** 2,
    }[parameterisation]
