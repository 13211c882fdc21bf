"""Samplers: from noise to an action, given `denoise(x, k) -> x0` and a schedule. Each is one `lax.scan`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.diffusion.schedules import Schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.types import Array

Denoise = Callable[[Array, Array], Array]
"""(x [..., A], k int32 [...]) -> estimate of the clean action x0 [..., A]."""


def step_sequence(schedule: Schedule, steps: int) -> np.ndarray:
    """The diffusion steps a sampler of `steps` network calls visits: int [steps + 1], from K down to 0, evenly spaced.

    Raises:
      UserError: more network calls than the denoiser has diffusion steps, or fewer than one.
    """
    if not 1 <= steps <= schedule.steps:
        raise UserError(f"sampler steps: {steps} is out of range; this denoiser was trained with 1 to {schedule.steps}")
    return np.round(np.linspace(schedule.steps, 0, steps + 1)).astype(np.int32)


def ddim(denoise: Denoise, schedule: Schedule, key: Array, x: Array, steps: int, eta: float = 0.0) -> Array:
    """DDIM (Song et al. 2021, eq. 12 and 16): from x at step K to a clean action in `steps` network calls.

    Args:
      x: [..., A] standard normal noise, the state at step K.
      eta: 0 is deterministic; 1 has the noise of the ancestral DDPM posterior.

    Returns:
      [..., A], the clean action.
    """
    sequence = step_sequence(schedule, steps)

    def step(x, inputs):
        k, k_next, key = inputs
        alpha, sigma = schedule.alphas[k], schedule.sigmas[k]
        alpha_next, sigma_next = schedule.alphas[k_next], schedule.sigmas[k_next]
        x0 = denoise(x, jnp.full(x.shape[:-1], k))
        direction = (x - alpha * x0) / sigma
        spread = eta * sigma_next / sigma * jnp.sqrt(jnp.maximum(1.0 - (alpha / alpha_next) ** 2, 0.0))
        x = alpha_next * x0 + jnp.sqrt(jnp.maximum(sigma_next**2 - spread**2, 0.0)) * direction
        if eta > 0.0:
            x = x + spread * jax.random.normal(key, x.shape, x.dtype)
        return x, None

    x, _ = jax.lax.scan(step, x, (sequence[:-1], sequence[1:], jax.random.split(key, steps)))
    return x


def ancestral(denoise: Denoise, schedule: Schedule, key: Array, x: Array, steps: int) -> Array:
    """Ancestral DDPM sampling (Ho et al. 2020, algorithm 2) with the posterior's own variance. As `ddim`, [..., A].

    On any sub-sequence of steps it is DDIM with eta = 1.
    """
    return ddim(denoise, schedule, key, x, steps, eta=1.0)


SAMPLERS = {"ddim": ddim, "ancestral": ancestral}


def find_sampler(name: str) -> Callable[..., Array]:
    """The named sampler. Raises UserError if there is none of that name."""
    if name not in SAMPLERS:
        raise UserError(f"sampler: {name!r} is unknown; choose one of {sorted(SAMPLERS)}")
    return SAMPLERS[name]


def sample(
    name: str, denoise: Denoise, schedule: Schedule, key: Array, shape: tuple[int, ...], steps: int | None = None
) -> Array:
    """Draws clean actions of the given shape [..., A] with the named sampler.

    Args:
      steps: network calls; None means as many as the denoiser was trained on.

    Raises:
      UserError: unknown sampler or impossible number of steps.
    """
    sampler = find_sampler(name)
    key_noise, key_steps = jax.random.split(key)
    x = jax.random.normal(key_noise, shape)
    return sampler(denoise, schedule, key_steps, x, schedule.steps if steps is None else steps)
