"""Noise schedules: how much of the clean action and how much noise each diffusion step holds.

A noised action is `x_k = alpha_k x_0 + sigma_k noise` with `alpha_k² + sigma_k² = 1`; step 0 is clean, step K is the
noisiest.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import struct

from llmdpd_jax.errors import UserError
from llmdpd_jax.types import Array


@struct.dataclass
class Schedule:
    """Tables over diffusion steps 0 .. K."""

    alphas: Array  # [K + 1], weight of the clean action; alphas[0] = 1
    sigmas: Array  # [K + 1], standard deviation of the noise; sigmas[0] = 0

    @property
    def steps(self) -> int:
        """K, the number of diffusion steps the denoiser is trained on."""
        return self.alphas.shape[0] - 1


def vp_betas(steps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> np.ndarray:
    """Per-step variances [K] of the variance-preserving SDE in K steps (Xiao et al. 2022, arXiv 2112.07804, eq. 13).

    Diffusion-QL uses it because it keeps a chain of 5 steps well conditioned.
    """
    k = np.arange(1, steps + 1)
    return 1.0 - np.exp(-beta_min / steps - 0.5 * (beta_max - beta_min) * (2 * k - 1) / steps**2)


def linear_betas(steps: int, beta_min: float = 1e-4, beta_max: float = 2e-2) -> np.ndarray:
    """Per-step variances [K] of DDPM (Ho et al. 2020), stated for 1000 steps and scaled to keep the same end point."""
    scale = 1000.0 / steps
    return np.clip(np.linspace(scale * beta_min, scale * beta_max, steps), 0.0, 0.999)


def cosine_betas(steps: int, offset: float = 0.008) -> np.ndarray:
    """Per-step variances [K] of the cosine schedule (Nichol & Dhariwal 2021, eq. 17)."""
    t = np.arange(steps + 1) / steps
    signal = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1.0 - signal[1:] / signal[:-1], 0.0, 0.999)


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {"vp": vp_betas, "linear": linear_betas, "cosine": cosine_betas}


def make_schedule(name: str, steps: int) -> Schedule:
    """Builds the tables [K + 1] of the named schedule.

    Raises:
      UserError: unknown name, or fewer than one step.
    """
    if name not in SCHEDULES:
        raise UserError(f"diffusion.schedule: {name!r} is unknown; choose one of {sorted(SCHEDULES)}")
    if steps < 1:
        raise UserError(f"diffusion.steps: {steps} is too small; at least 1 is needed")
    signal = np.concatenate([[1.0], np.cumprod(1.0 - SCHEDULES[name](steps))])
    return Schedule(
        alphas=jnp.asarray(np.sqrt(signal), jnp.float32), sigmas=jnp.asarray(np.sqrt(1.0 - signal), jnp.float32)
    )
