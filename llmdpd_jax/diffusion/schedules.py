"""Noise schedules: how much of the clean action and how much noise there is at each time.

A noised action is `x_t = alpha(t) x_0 + sigma(t) noise`, time running from 0 (clean, or nearly so) to 1 (noise). A
schedule is a curve over all times; how many times a denoiser is trained on, and how many a sampler visits, are choices
of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.types import Array

Curve = Callable[[Array], tuple[Array, Array]]

DDPM_STEPS = 1000  # that the linear and the cosine schedule were stated for
EDM_SIGMAS = 0.002, 80.0  # least and most noise (Karras et al. 2022, table 1)
EDM_RHO = 7.0


def _of_log_signal(log_signal: Array) -> tuple[Array, Array]:
    """alpha and sigma with alpha² = exp(log_signal) and alpha² + sigma² = 1."""
    return jnp.exp(0.5 * log_signal), jnp.sqrt(-jnp.expm1(log_signal))


def vp(t: Array, beta_min: float = 0.1, beta_max: float = 10.0) -> tuple[Array, Array]:
    """The variance-preserving SDE (Song et al. 2021, eq. 33) with the betas of Xiao et al. 2022 (arXiv 2112.07804).

    Diffusion-QL uses it because it keeps a chain of 5 steps well conditioned.
    """
    return _of_log_signal(-beta_min * t - 0.5 * (beta_max - beta_min) * t**2)


_DDPM_LOG_SIGNAL = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(1e-4, 2e-2, DDPM_STEPS)))])


def linear(t: Array) -> tuple[Array, Array]:
    """DDPM's 1000 linearly growing variances (Ho et al. 2020), interpolated between its steps."""
    return _of_log_signal(jnp.interp(t, np.linspace(0, 1, DDPM_STEPS + 1), _DDPM_LOG_SIGNAL))


def cosine(t: Array, offset: float = 0.008, most: float = 0.999) -> tuple[Array, Array]:
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17), whose last of 1000 variances is clipped to `most`."""

    def phase(t):
        return (t + offset) / (1 + offset) * np.pi / 2

    start, last = np.cos(phase(0.0)), np.cos(phase(1.0 - 1.0 / DDPM_STEPS))
    least = 2 * np.log(last / start) + np.log1p(-most)
    # Beyond the last step but one the cosine itself would round to anything.
    signal = 2 * jnp.log(jnp.maximum(jnp.cos(phase(t)) / start, 1e-9))
    return _of_log_signal(jnp.minimum(jnp.maximum(signal, least), 0.0))


def edm(t: Array) -> tuple[Array, Array]:
    """Noise of growing size on an unscaled action, spaced as in EDM (Karras et al. 2022, eq. 5)."""
    low, high = (sigma ** (1 / EDM_RHO) for sigma in EDM_SIGMAS)
    return jnp.ones_like(t), (low + t * (high - low)) ** EDM_RHO


def flow(t: Array) -> tuple[Array, Array]:
    """The straight path from the clean action to noise (flow matching, Lipman et al. 2023; Liu et al. 2023)."""
    return 1.0 - t, t


SCHEDULES: dict[str, Curve] = {"vp": vp, "linear": linear, "cosine": cosine, "edm": edm, "flow": flow}


TIME_DRAWS = ("grid", "continuous", "log_normal")


@dataclass(frozen=True)
class Schedule:
    """A curve, and the times on it that a denoiser is trained on. Hashable: static under jit."""

    name: str
    steps: int  # K; the denoiser is told t K
    draw: str = "grid"  # of training times: `process.sample_time`; on a "grid" they are 1/K, 2/K, ..., 1 and no others

    def at(self, t: Array) -> tuple[Array, Array]:
        """Weight alpha of the clean action and standard deviation sigma of the noise at times t [...], float32."""
        return SCHEDULES[self.name](jnp.asarray(t, jnp.float32))

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha² + sigma² = 1."""
        return self.name not in ("edm", "flow")


def make_schedule(name: str, steps: int, draw: str = "grid") -> Schedule:
    """The named schedule, with K = `steps`.

    Raises:
      UserError: unknown name or draw, fewer than one step, or a grid on the EDM schedule.
    """
    if name not in SCHEDULES:
        raise UserError(f"diffusion.schedule: {name!r} is unknown; choose one of {sorted(SCHEDULES)}")
    if steps < 1:
        raise UserError(f"diffusion.steps: {steps} is too small; at least 1 is needed")
    if draw not in TIME_DRAWS:
        raise UserError(f"diffusion.time_draw: {draw!r} is unknown; choose one of {list(TIME_DRAWS)}")
    if name == "edm" and draw == "grid":
        raise UserError("diffusion.time_draw: 'grid' has too few times for the edm schedule; choose 'log_normal'")
    return Schedule(name, steps, draw)
