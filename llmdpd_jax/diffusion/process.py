"""The forward process and the three things a network may predict about it: noise, the clean action, or velocity."""

import jax

from llmdpd_jax.diffusion.schedules import Schedule
from llmdpd_jax.types import Array

PARAMETERISATIONS = ("noise", "x0", "velocity")


def add_noise(schedule: Schedule, x0: Array, k: Array, noise: Array) -> Array:
    """`x_k = alpha_k x_0 + sigma_k noise`. x0 and noise [..., A], k int [...] -> [..., A]."""
    return schedule.alphas[k][..., None] * x0 + schedule.sigmas[k][..., None] * noise


def sample_step(key: Array, schedule: Schedule, shape: tuple[int, ...]) -> Array:
    """Diffusion steps drawn uniformly from 1 .. K, int32 of the given shape."""
    return jax.random.randint(key, shape, 1, schedule.steps + 1)


def network_target(parameterisation: str, schedule: Schedule, x0: Array, k: Array, noise: Array) -> Array:
    """What the network should output for a noised action. x0 and noise [..., A], k [...] -> [..., A].

    Velocity is `alpha_k noise - sigma_k x_0` (Salimans & Ho 2022).
    """
    if parameterisation == "noise":
        return noise
    if parameterisation == "x0":
        return x0
    return schedule.alphas[k][..., None] * noise - schedule.sigmas[k][..., None] * x0


def to_x0(parameterisation: str, schedule: Schedule, output: Array, x: Array, k: Array) -> Array:
    """The clean action that a network output stands for. output and x [..., A], k [...] (>= 1) -> [..., A]."""
    if parameterisation == "x0":
        return output
    alpha, sigma = schedule.alphas[k][..., None], schedule.sigmas[k][..., None]
    if parameterisation == "noise":
        return (x - sigma * output) / alpha
    return alpha * x - sigma * output


def to_noise(schedule: Schedule, x0: Array, x: Array, k: Array) -> Array:
    """The noise that turns x0 into x at step k. x0 and x [..., A], k [...] (>= 1) -> [..., A]."""
    return (x - schedule.alphas[k][..., None] * x0) / schedule.sigmas[k][..., None]
