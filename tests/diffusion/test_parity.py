"""Schedules and whole sampler trajectories against `diffusers`, with the same noise and the same analytic denoiser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import mixture_denoiser

from llmdpd_jax import draws
from llmdpd_jax.diffusion import samplers
from llmdpd_jax.diffusion.samplers import SAMPLERS, make_grid
from llmdpd_jax.diffusion.schedules import make_schedule

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

TRAIN_STEPS = 1000
LINEAR = make_schedule("linear", TRAIN_STEPS)
DDPM = {"num_train_timesteps": TRAIN_STEPS, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
TRAILING = {"timestep_spacing": "trailing"}
# Denoisers are called in float32 by both sides; what lies between is at most a few roundings.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def start(count=64):
    return np.asarray(jax.random.normal(jax.random.key(5), (count, 2)))


def noise_of(monkeypatch, steps, count=64):
    """The noise [steps, count, 2] that both sides are fed."""
    noise = np.asarray(jax.random.normal(jax.random.key(6), (steps, count, 2)))
    drawn = iter(noise)
    monkeypatch.setattr(draws, "split", lambda key, count: jnp.arange(count))
    monkeypatch.setattr(draws, "normal", lambda key, shape: jnp.asarray(noise)[key])
    return drawn


def ours(sampler, grid, x):
    return np.asarray(SAMPLERS[sampler](mixture_denoiser(grid.schedule), grid, jax.random.key(0), jnp.asarray(x)))


def clean(schedule, x, t):
    """E[x0 | x_t] as a torch tensor of float64."""
    x0 = mixture_denoiser(schedule)(jnp.asarray(x.numpy(), jnp.float32), jnp.full(len(x), t, jnp.float32))
    return torch.tensor(np.asarray(x0), dtype=x.dtype)


def theirs(scheduler, steps, x, step=None):
    """The sample after all steps of a scheduler that is told x0, at its own times k = t + 1 of TRAIN_STEPS."""
    scheduler.set_timesteps(steps)
    x = torch.tensor(x, dtype=torch.float64)
    for k in scheduler.timesteps:
        x0 = clean(LINEAR, x, (float(k) + 1) / TRAIN_STEPS)
        x = (step or scheduler.step)(x0, k, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize(("name", "beta_schedule"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_schedules(name, beta_schedule):
    scheduler = diffusers.DDPMScheduler(**DDPM | {"beta_schedule": beta_schedule})
    alpha, sigma = make_schedule(name, TRAIN_STEPS).at(np.arange(1, TRAIN_STEPS + 1) / TRAIN_STEPS)
    signal = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(alpha, np.sqrt(signal), atol=1e-5)
    np.testing.assert_allclose(sigma, np.sqrt(1 - signal), atol=1e-5)


def test_edm_sigmas():
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(18)
    np.testing.assert_allclose(make_grid(make_schedule("edm", 1, "log_normal"), 18).sigmas, scheduler.sigmas, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_ddim(steps):
    scheduler = diffusers.DDIMScheduler(**DDPM, **TRAILING, prediction_type="sample", clip_sample=False)
    found = ours("ddim", make_grid(LINEAR, steps), start())
    np.testing.assert_allclose(found, theirs(scheduler, steps, start()), **TOLERANCE)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim(eta, monkeypatch):
    steps = 5
    scheduler = diffusers.DDIMScheduler(**DDPM, **TRAILING, prediction_type="sample", clip_sample=False)
    x = start()
    noise = noise_of(monkeypatch, steps)

    def step(x0, k, x):
        return scheduler.step(x0, k, x, eta=eta, variance_noise=torch.tensor(next(noise)))

    expected = theirs(scheduler, steps, x, step)
    found = samplers.by_table(partial(samplers.ddim_table, eta=eta))(
        mixture_denoiser(LINEAR), make_grid(LINEAR, steps), None, jnp.asarray(x)
    )
    np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_ancestral_is_ddpm(monkeypatch):
    steps = 20
    scheduler = diffusers.DDPMScheduler(**DDPM, **TRAILING, prediction_type="sample", clip_sample=False)
    x = start()
    noise = noise_of(monkeypatch, steps)
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **options: torch.tensor(next(noise)))
    expected = theirs(scheduler, steps, x)
    found = SAMPLERS["ancestral"](mixture_denoiser(LINEAR), make_grid(LINEAR, steps), None, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_dpm_solver(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(**DDPM, **TRAILING, prediction_type="sample")
    assert scheduler.config.algorithm_type == "dpmsolver++" and scheduler.config.solver_order == 2
    found = ours("dpm_solver", make_grid(LINEAR, steps), start())
    np.testing.assert_allclose(found, theirs(scheduler, steps, start()), **TOLERANCE)


def test_stochastic_dpm_solver(monkeypatch):
    steps = 6
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **DDPM, **TRAILING, prediction_type="sample", algorithm_type="sde-dpmsolver++"
    )
    x = start()
    noise = noise_of(monkeypatch, steps)

    def step(x0, k, x):
        return scheduler.step(x0, k, x, variance_noise=torch.tensor(next(noise)))

    expected = theirs(scheduler, steps, x, step)
    found = SAMPLERS["dpm_solver_sde"](mixture_denoiser(LINEAR), make_grid(LINEAR, steps), None, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize("steps", [3, 18])
def test_euler_on_the_edm_schedule_is_ddim(steps, monkeypatch):
    schedule = make_schedule("edm", 1, "log_normal")
    grid = make_grid(schedule, steps)
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    monkeypatch.setattr(scheduler, "precondition_outputs", lambda sample, output, sigma: output)  # it is x0 already
    first = start() * np.float32(80.0)
    x = torch.tensor(first, dtype=torch.float64)
    for k, t in zip(scheduler.timesteps, grid.times, strict=True):
        scheduler.scale_model_input(x, k)
        x = scheduler.step(clean(schedule, x, t), k, x).prev_sample
    np.testing.assert_allclose(ours("ddim", grid, first), x.numpy(), **TOLERANCE)


@pytest.mark.parametrize("steps", [10, 18])
def test_heun_on_the_edm_schedule(steps):
    """Given EDM's sigmas; the scheduler asks for the noise, x = x0 + sigma noise."""
    schedule = make_schedule("edm", 1, "log_normal")
    # From the middle, sigma 2.5: of numbers of size 80 float32 keeps 1e-5 only.
    grid = make_grid(schedule, steps, 0.5)
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(steps)
    sigmas = torch.tensor(grid.sigmas)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    # Both stages of a step but the last: at its own time and at the next.
    stages = [0, *np.repeat(np.arange(1, steps), 2)]
    scheduler.timesteps = torch.arange(len(stages)).flip(0).double()
    first = start() * np.float32(grid.sigmas[0])
    x = torch.tensor(first, dtype=torch.float64)
    for k, i in zip(scheduler.timesteps, stages, strict=True):
        noise = (x - clean(schedule, x, grid.times[i])) / sigmas[i]
        x = scheduler.step(noise, k, x).prev_sample
    np.testing.assert_allclose(ours("heun", grid, first), x.numpy(), **TOLERANCE)


@pytest.mark.parametrize("steps", [4, 20])
def test_euler_on_the_straight_path_is_ddim(steps):
    schedule = make_schedule("flow", 1, "continuous")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    x = torch.tensor(start(), dtype=torch.float64)
    for k in scheduler.timesteps:
        t = float(k) / TRAIN_STEPS
        x = scheduler.step((x - clean(schedule, x, t)) / t, k, x).prev_sample.double()
    np.testing.assert_allclose(ours("ddim", make_grid(schedule, steps), start()), x.numpy(), **TOLERANCE)
