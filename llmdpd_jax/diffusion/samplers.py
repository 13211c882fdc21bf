"""Samplers: from noise to an action, given `denoise(x, t) -> x0` and a schedule. Each is a `lax.scan`.

All have one signature, so that they are a choice by name, and visit any number of times, whatever the denoiser was
trained on. There are two kinds. *Multistep* samplers call the denoiser once per step and combine what it says now and
said before with coefficients known beforehand. *Two-stage* samplers call it twice per step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.diffusion.process import add_noise
from llmdpd_jax.diffusion.schedules import Schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.types import Array

SMALLEST_ALPHA = 1e-3  # of the clean action; divided by less, rounding errors show

Denoise = Callable[[Array, Array], Array]
"""(x [..., A], t float in (0, 1] that broadcasts with [...]) -> estimate of the clean action x0 [..., A]."""


@dataclass(frozen=True)
class Grid:
    """The times a sampler visits, as NumPy arrays; the last of `alphas` and `sigmas` is the clean action's, 1 and 0."""

    schedule: Schedule
    times: np.ndarray  # [steps]
    alphas: np.ndarray = field(init=False)  # [steps + 1]
    sigmas: np.ndarray = field(init=False)  # [steps + 1]

    def __post_init__(self):
        with jax.ensure_compile_time_eval():
            alphas, sigmas = (np.asarray(a, np.float64) for a in self.schedule.at(self.times))
        object.__setattr__(self, "alphas", np.append(alphas, 1.0))
        object.__setattr__(self, "sigmas", np.append(sigmas, 0.0))


def make_grid(schedule: Schedule, steps: int, start: float = 1.0) -> Grid:
    """`steps` evenly spaced times from `start` down; the clean action comes after the last.

    Of a denoiser that was trained on a grid, times on it. Time 0 is the clean action itself but on the EDM schedule,
    whose last time has the least noise.

    Raises:
      UserError: fewer than one step, more than a grid has, or a start outside (0, 1].
    """
    if steps < 1:
        raise UserError(f"sampler steps: {steps} is out of range; at least 1 is needed")
    if not 0.0 < start <= 1.0:
        raise UserError(f"sampler start: {start} is no time to start from; choose one above 0 and at most 1")
    if schedule.name == "edm":
        return Grid(schedule, np.linspace(start, 0.0, steps))
    if schedule.draw == "grid":
        most = max(round(start * schedule.steps), 1)  # the first time, of those trained on the nearest to the start
        if steps > most:
            raise UserError(
                f"sampler steps: {steps} is out of range; this denoiser was trained on 1 to {most} steps from there. "
                "One that was trained with diffusion.time_draw=continuous takes any number"
            )
        return Grid(schedule, np.ceil(np.linspace(most, 0, steps + 1)[:-1] - 0.5) / schedule.steps)
    return Grid(schedule, np.linspace(start, 0.0, steps + 1)[:-1])


def same_time(x: Array, t: Array) -> Array:
    """One time [] for a whole batch x [..., A], with its axes but of size 1: a network embeds it once."""
    return jnp.reshape(t, (1,) * (x.ndim - 1))


# --- multistep samplers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coefficients:
    """A step is `x <- keep x + pull (x0 + slope (x0 - previous x0)) + spread noise`. [steps] each."""

    keep: np.ndarray
    pull: np.ndarray
    slope: np.ndarray
    spread: np.ndarray


def ddim_coefficients(grid: Grid, eta: float) -> Coefficients:
    """DDIM (Song et al. 2021, eq. 12 and 16); with eta 1 the ancestral posterior of DDPM on any sequence of times."""
    alpha, sigma, alpha_next, sigma_next = grid.alphas[:-1], grid.sigmas[:-1], grid.alphas[1:], grid.sigmas[1:]
    fresh = np.maximum(1.0 - (alpha * sigma_next / (alpha_next * sigma)) ** 2, 0.0)  # share of the noise renewed
    spread = eta * sigma_next * np.sqrt(fresh)
    keep = np.sqrt(np.maximum(sigma_next**2 - spread**2, 0.0)) / sigma
    return Coefficients(keep, alpha_next - keep * alpha, np.zeros_like(keep), spread)


def dpm_solver_coefficients(grid: Grid, stochastic: bool) -> Coefficients:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2), or its SDE form (section 6).

    Second order in steps of the log of alpha / sigma; the first step and the last, which ends without noise, are of
    first order.
    """
    alpha_next, sigma, sigma_next = grid.alphas[1:], grid.sigmas[:-1], grid.sigmas[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.diff(np.log(grid.alphas) - np.log(grid.sigmas))  # infinite where there is no action or no noise yet
        slope = np.append(0.0, 0.5 * step[1:] / step[:-1])
        slope = np.where(np.isfinite(step), slope, 0.0)
    decay = np.exp(-step)
    if not stochastic:
        return Coefficients(sigma_next / sigma, alpha_next * (1.0 - decay), slope, np.zeros_like(slope))
    return Coefficients(
        sigma_next / sigma * decay,
        alpha_next * (1.0 - decay**2),
        slope,
        sigma_next * np.sqrt(1.0 - decay**2),
    )


def multistep(
    coefficients: Callable[[Grid], Coefficients], denoise: Denoise, grid: Grid, key: Array, x: Array
) -> Array:
    """From x [..., A] at the grid's first time to a clean action [..., A], one network call per step."""
    c = coefficients(grid)
    drawn = np.flatnonzero(c.spread)  # steps that add noise; the last one never does
    rows = tuple(jnp.asarray(a, jnp.float32) for a in (grid.times, c.keep, c.pull, c.slope))
    noise = None
    if len(drawn):
        keys = jax.random.split(key, len(grid.times))[drawn]
        added = jax.vmap(lambda key, spread: spread * jax.random.normal(key, x.shape, x.dtype))
        spread = jnp.asarray(c.spread[drawn], jnp.float32)
        noise = jnp.zeros((len(grid.times), *x.shape), x.dtype).at[drawn].set(added(keys, spread))

    def step(carry, inputs):
        x, previous = carry
        (t, keep, pull, slope), noise = inputs
        x0 = denoise(x, same_time(x, t))
        x = keep * x + pull * (x0 + slope * (x0 - previous))
        return (x if noise is None else x + noise, x0), None

    return jax.lax.scan(step, (x, jnp.zeros_like(x)), (rows, noise))[0][0]


# --- two-stage samplers ----------------------------------------------------------------------------------------------


def two_stage(where: float, denoise: Denoise, grid: Grid, key: Array, x: Array) -> Array:
    """Runge-Kutta of second order with its second stage at `where` of a step: 1 is Heun's method, 1/2 the midpoint.

    As in EDM (Karras et al. 2022, algorithm 1) what is integrated is y = x / alpha over the noise sigma / alpha. Where
    next to nothing of the action is left at the start, y = x / (alpha + sigma) over sigma / (alpha + sigma), which is
    flow matching's own form. Either way the slope is (y - x0) / noise. The step that ends without noise is Euler's. Two
    network calls per step, one for the last.

    Raises:
      UserError: times between those that a denoiser was trained on are needed.
    """
    del key
    if where < 1.0 and grid.schedule.draw == "grid":
        raise UserError("sampler: 'midpoint' visits times off a grid; train with diffusion.time_draw=continuous")
    straight = grid.alphas[0] < SMALLEST_ALPHA

    def scaled(alphas: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = alphas + sigmas if straight else alphas
        return scale, sigmas / scale

    scale, noise = scaled(grid.alphas, grid.sigmas)
    middle = Grid(grid.schedule, grid.times[:-1] + where * np.diff(grid.times))
    middle_scale, middle_noise = (a[:-1] for a in scaled(middle.alphas, middle.sigmas))
    length, part = np.diff(noise)[:-1], (middle_noise - noise[:-2]) / np.diff(noise)[:-1]
    rows = grid.times[:-1], middle.times, scale[:-2], middle_scale, noise[:-2], middle_noise, length, part

    def slope(y, t, scale, noise):
        return (y - denoise(scale * y, same_time(y, t))) / noise

    def step(y, inputs):
        t, t_middle, scale, scale_middle, noise, noise_middle, length, part = inputs
        first = slope(y, t, scale, noise)
        second = slope(y + part * length * first, t_middle, scale_middle, noise_middle)
        return y + length * (first + (second - first) / (2.0 * part)), None

    rows = tuple(jnp.asarray(a, jnp.float32) for a in rows)
    y, _ = jax.lax.scan(step, x / jnp.float32(scale[0]), rows)
    return denoise(jnp.float32(scale[-2]) * y, same_time(y, jnp.float32(grid.times[-1])))


# --- by name ---------------------------------------------------------------------------------------------------------

Sampler = Callable[[Denoise, Grid, Array, Array], Array]
"""(denoise, grid, key, x [..., A] at the grid's first time) -> clean action [..., A]."""


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM, eta being the share of the ancestral noise: 0 is deterministic, 1 is ancestral."""
    return partial(multistep, partial(ddim_coefficients, eta=eta))


# Euler's method on the probability flow is DDIM, on any schedule: there is no sampler "euler" beside it.
SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim(),
    "ancestral": ddim(eta=1.0),
    "dpm_solver": partial(multistep, partial(dpm_solver_coefficients, stochastic=False)),
    "dpm_solver_sde": partial(multistep, partial(dpm_solver_coefficients, stochastic=True)),
    "heun": partial(two_stage, 1.0),
    "midpoint": partial(two_stage, 0.5),
}


def find_sampler(name: str) -> Sampler:
    """The named sampler. Raises UserError if there is none of that name."""
    if name not in SAMPLERS:
        raise UserError(f"sampler: {name!r} is unknown; choose one of {sorted(SAMPLERS)}")
    return SAMPLERS[name]


def network_calls(name: str, steps: int) -> int:
    """How often a sampler calls the denoiser for an action."""
    return 2 * steps - 1 if name in ("heun", "midpoint") else steps


def sample(
    sampler: str | Sampler,
    denoise: Denoise,
    schedule: Schedule,
    key: Array,
    shape: tuple[int, ...],
    steps: int | None = None,
    warm_start: tuple[Array, float] | None = None,
    noise: Array | None = None,
) -> Array:
    """Draws clean actions of the given shape [..., A].

    Args:
      sampler: a name in SAMPLERS, or a sampler.
      steps: how many; None means as many as the denoiser was trained on.
      warm_start: actions [..., A] to start from and the time they are noised to, below 1 (on a grid, the nearest of its
        times): what is likely to be near them, such as the previous action, is found in fewer steps.
      noise: standard normal [..., A] to start from rather than from some drawn with the key.

    Raises:
      UserError: unknown sampler or impossible number of steps.
    """
    sampler = find_sampler(sampler) if isinstance(sampler, str) else sampler
    start = 1.0 if warm_start is None else warm_start[1]
    grid = make_grid(schedule, schedule.steps if steps is None else steps, start)
    key_noise, key_steps = jax.random.split(key)
    noise = jax.random.normal(key_noise, shape) if noise is None else noise
    if warm_start is None:
        x = noise if schedule.variance_preserving else jnp.float32(grid.sigmas[0]) * noise
    else:
        x = add_noise(schedule, warm_start[0], jnp.full(shape[:-1], jnp.float32(grid.times[0])), noise)
    return sampler(denoise, grid, key_steps, x)
