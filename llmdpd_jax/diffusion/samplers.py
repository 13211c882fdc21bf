"""Samplers: from noise to an action, given `denoise(x, t) -> x0` and a schedule.

All visit any number of times, whatever the denoiser was trained on, and are linear in what the denoiser says, with
coefficients known beforehand. So each is a *table*, a row for every call of the denoiser, and one `lax.scan` walks
along any of them; several tables side by side are several samplers in one compiled call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llmdpd_jax import draws
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
        most = most_steps(schedule.steps, start)
        if steps > most:
            raise UserError(
                f"sampler steps: {steps} is out of range; this denoiser was trained on 1 to {most} steps from there. "
                "One that was trained with diffusion.time_draw=continuous takes any number"
            )
        return Grid(schedule, np.ceil(np.linspace(most, 0, steps + 1)[:-1] - 0.5) / schedule.steps)
    return Grid(schedule, np.linspace(start, 0.0, steps + 1)[:-1])


def most_steps(trained: int, start: float) -> int:
    """Steps from `start` down on a grid of times: the first is the nearest to the start of those trained on."""
    return max(round(start * trained), 1)


def same_time(x: Array, t: Array) -> Array:
    """One time [] for a whole batch x [..., A], with its axes but of size 1: a network embeds it once."""
    return jnp.reshape(t, (1,) * (x.ndim - 1))


# --- tables ----------------------------------------------------------------------------------------------------------


@struct.dataclass
class Table:
    """What a sampler does, a row for each call of the denoiser. Arrays [calls], of NumPy or traced.

    `x <- keep x + anchor a + pull x0 + previous x0' + spread noise`, where x0 is what the denoiser says now and x0'
    what it said before; a is the x at which `renew` was last true, the start of a step of two calls.
    """

    times: Array
    keep: Array
    pull: Array
    previous: Array
    spread: Array
    anchor: Array
    renew: Array  # bool


def multistep(times: np.ndarray, keep: np.ndarray, pull: np.ndarray, slope: np.ndarray, spread: np.ndarray) -> Table:
    """One call per step: `x <- keep x + pull (x0 + slope (x0 - x0')) + spread noise`."""
    zeros = np.zeros_like(keep)
    return Table(times, keep, pull * (1.0 + slope), -pull * slope, spread, zeros, zeros > 0.0)


def ddim_table(grid: Grid, eta: float = 0.0) -> Table:
    """DDIM (Song et al. 2021, eq. 12 and 16); with eta 1 the ancestral posterior of DDPM on any sequence of times."""
    alpha, sigma, alpha_next, sigma_next = grid.alphas[:-1], grid.sigmas[:-1], grid.alphas[1:], grid.sigmas[1:]
    fresh = np.maximum(1.0 - (alpha * sigma_next / (alpha_next * sigma)) ** 2, 0.0)  # share of the noise renewed
    spread = eta * sigma_next * np.sqrt(fresh)
    keep = np.sqrt(np.maximum(sigma_next**2 - spread**2, 0.0)) / sigma
    return multistep(grid.times, keep, alpha_next - keep * alpha, np.zeros_like(keep), spread)


def dpm_solver_table(grid: Grid, stochastic: bool = False) -> Table:
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
        return multistep(grid.times, sigma_next / sigma, alpha_next * (1.0 - decay), slope, np.zeros_like(slope))
    pull, spread = alpha_next * (1.0 - decay**2), sigma_next * np.sqrt(1.0 - decay**2)
    return multistep(grid.times, sigma_next / sigma * decay, pull, slope, spread)


def two_stage_table(grid: Grid, where: float) -> Table:
    """Runge-Kutta of second order with its second stage at `where` of a step: 1 is Heun's method, 1/2 the midpoint.

    As in EDM (Karras et al. 2022, algorithm 1) what is integrated is y = x / alpha over the noise sigma / alpha. Where
    next to nothing of the action is left at the start, y = x / (alpha + sigma) over sigma / (alpha + sigma), which is
    flow matching's own form. Either way the slope is (y - x0) / noise. The step that ends without noise is Euler's. Two
    network calls per step, one for the last.

    Raises:
      UserError: times between those that a denoiser was trained on are needed.
    """
    if where < 1.0 and grid.schedule.draw == "grid":
        raise UserError("sampler: 'midpoint' visits times off a grid; train with diffusion.time_draw=continuous")
    straight = grid.alphas[0] < SMALLEST_ALPHA

    def scaled(alphas: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = alphas + sigmas if straight else alphas
        return scale, sigmas / scale

    scale, noise = scaled(grid.alphas, grid.sigmas)
    middle = Grid(grid.schedule, grid.times[:-1] + where * np.diff(grid.times))
    middle_scale, middle_noise = (a[:-1] for a in scaled(middle.alphas, middle.sigmas))
    scale, scale_next, noise, length = scale[:-2], scale[1:-1], noise[:-2], np.diff(noise)[:-1]
    part = (middle_noise - noise) / length

    # First stage, y + part length (y - x0) / noise; then from the same y by both slopes.
    rise, first, second = part * length / noise, length * (1.0 - 0.5 / part) / noise, 0.5 * length / part / middle_noise
    ones, zeros = np.ones_like(rise), np.zeros_like(rise)

    def calls(of_first: np.ndarray, of_second: np.ndarray, of_last: float) -> np.ndarray:
        return np.append(np.stack([of_first, of_second], axis=-1).ravel(), of_last)

    return Table(
        times=calls(grid.times[:-1], middle.times, grid.times[-1]),
        keep=calls(middle_scale / scale * (1.0 + rise), scale_next / middle_scale * second, 0.0),
        pull=calls(-middle_scale * rise, -scale_next * second, 1.0),
        previous=calls(zeros, -scale_next * first, 0.0),
        spread=calls(zeros, zeros, 0.0),
        anchor=calls(zeros, scale_next / scale * (1.0 + first), 0.0),
        renew=calls(zeros, ones, 0.0) > 0.0,
    )


def stack_tables(tables: Sequence[Table]) -> Table:
    """Tables of several samplers as one [S, calls], to be swept over by `vmap`; the shorter end with idle calls."""
    most = max(len(table.times) for table in tables)

    def stack(name: str) -> np.ndarray:
        idle = {"times": 1.0, "keep": 1.0}.get(name, 0)
        columns = [getattr(table, name) for table in tables]
        return np.stack([np.pad(c, (0, most - len(c)), constant_values=idle) for c in columns])

    return Table(**{field.name: stack(field.name) for field in fields(Table)})


def walk(table: Table, denoise: Denoise, key: Array, x: Array, temperature: float = 1.0) -> Array:
    """From x [..., A] at a table's first time to a clean action [..., A]; noise on the way is scaled by a temperature.

    What a NumPy table leaves at 0 throughout costs nothing; of a traced one nothing is known beforehand.
    """
    calls = len(table.times)
    rows = {field.name: getattr(table, field.name) for field in fields(Table)}
    static = all(isinstance(column, np.ndarray) for column in rows.values())
    always = ("times", "keep", "pull")
    used = {name: column for name, column in rows.items() if not static or name in always or column.any()}
    used = {name: jnp.asarray(c, bool if name == "renew" else jnp.float32) for name, c in used.items()}
    if "spread" in used:
        drawn = np.flatnonzero(table.spread) if static else np.arange(calls)  # the last call never adds noise
        draw = jax.vmap(lambda key, spread: temperature * spread * draws.normal(key, x.shape))
        noise = draw(draws.split(key, calls)[drawn], used["spread"][drawn])
        used["spread"] = jnp.zeros((calls, *x.shape), x.dtype).at[drawn].set(noise)

    def step(carry, row):
        x, previous, anchor = carry
        x0 = denoise(x, same_time(x, row["times"]))
        x = row["keep"] * x + row["pull"] * x0
        if "previous" in row:
            x = x + row["previous"] * previous
        if "anchor" in row:
            x = x + row["anchor"] * anchor
            anchor = jnp.where(row["renew"], x, anchor)
        if "spread" in row:
            x = x + row["spread"]
        return (x, x0, anchor), None

    return jax.lax.scan(step, (x, jnp.zeros_like(x), x), used)[0][0]


# --- by name ---------------------------------------------------------------------------------------------------------

Sampler = Callable[[Denoise, Grid, Array, Array, float], Array]
"""(denoise, grid, key, x [..., A] at the grid's first time, temperature) -> clean action [..., A]."""

# Euler's method on the probability flow is DDIM, on any schedule: there is no sampler "euler" beside it.
TABLES: dict[str, Callable[[Grid], Table]] = {
    "ddim": ddim_table,
    "ancestral": partial(ddim_table, eta=1.0),
    "dpm_solver": dpm_solver_table,
    "dpm_solver_sde": partial(dpm_solver_table, stochastic=True),
    "heun": partial(two_stage_table, where=1.0),
    "midpoint": partial(two_stage_table, where=0.5),
}


def by_table(table: Callable[[Grid], Table]) -> Sampler:
    """The sampler that walks along the grid's table."""
    return lambda denoise, grid, key, x, temperature=1.0: walk(table(grid), denoise, key, x, temperature)


SAMPLERS: dict[str, Sampler] = {name: by_table(table) for name, table in TABLES.items()}


def find_sampler(name: str) -> Sampler:
    """The named sampler. Raises UserError if there is none of that name."""
    if name not in SAMPLERS:
        raise UserError(f"sampler: {name!r} is unknown; choose one of {sorted(SAMPLERS)}")
    return SAMPLERS[name]


def network_calls(name: str, steps: int) -> int:
    """How often a sampler calls the denoiser for an action."""
    return 2 * steps - 1 if name in ("heun", "midpoint") else steps


def check_temperature(temperature: float) -> float:
    """The temperature itself. Raises UserError unless noise can be scaled by it."""
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise UserError(f"temperature: {temperature} is out of range; noise is scaled by a number of 0 or more")
    return temperature


def sample(
    sampler: str | Sampler,
    denoise: Denoise,
    schedule: Schedule,
    key: Array,
    shape: tuple[int, ...],
    steps: int | None = None,
    warm_start: tuple[Array, float] | None = None,
    noise: Array | None = None,
    temperature: float = 1.0,
) -> Array:
    """Draws clean actions of the given shape [..., A].

    Args:
      sampler: a name in SAMPLERS, or a sampler.
      steps: how many; None means as many as the denoiser was trained on.
      warm_start: actions [..., A] to start from and the time they are noised to, below 1 (on a grid, the nearest of its
        times): what is likely to be near them, such as the previous action, is found in fewer steps.
      key: one, or one for each entry of the first axes of the shape (`llmdpd_jax.draws`).
      noise: standard normal [..., A] to start from rather than from some drawn with the key.
      temperature: scale of all noise (low-temperature sampling, Ajay et al. 2023, arXiv 2211.15657): below 1 actions
        gather where the denoiser expects them, at 0 there is one for each observation.

    Raises:
      UserError: unknown sampler or impossible number of steps.
    """
    sampler = find_sampler(sampler) if isinstance(sampler, str) else sampler
    start = 1.0 if warm_start is None else warm_start[1]
    grid = make_grid(schedule, schedule.steps if steps is None else steps, start)
    key_noise, key_steps = draws.split(key, 2)
    noise = temperature * (draws.normal(key_noise, shape) if noise is None else noise)
    if warm_start is None:
        x = noise if schedule.variance_preserving else jnp.float32(grid.sigmas[0]) * noise
    else:
        x = add_noise(schedule, warm_start[0], jnp.full(shape[:-1], jnp.float32(grid.times[0])), noise)
    return sampler(denoise, grid, key_steps, x, temperature)
