"""A mixture of Gaussians, whose exact denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np

MEANS = np.array([[1.0, 0.5], [-1.0, 0.0], [0.3, -1.0]], np.float32)
WEIGHTS = np.array([0.5, 0.3, 0.2], np.float32)
STD = 0.2


def mixture_denoiser(schedule, means=MEANS, weights=WEIGHTS, std=STD):
    """E[x0 | x_t]: x [n, 2], t [n] -> [n, 2]."""

    def denoise(x, t):
        alpha, sigma = (a[:, None] for a in schedule.at(t))
        variance = alpha**2 * std**2 + sigma**2
        offset = x[:, None] - alpha[..., None] * means  # [n, modes, 2]
        log_weights = jnp.log(weights) - (offset**2).sum(-1) / (2 * variance)
        posterior = means + (alpha * std**2 / variance)[..., None] * offset
        return (jax.nn.softmax(log_weights)[..., None] * posterior).sum(1)

    return denoise


def draw_mixture(count, seed):
    rng = np.random.default_rng(seed)
    return MEANS[rng.choice(3, count, p=WEIGHTS)] + STD * rng.standard_normal((count, 2)).astype(np.float32)


def sliced_wasserstein(a, b, directions=32):
    """Mean distance of the sorted projections on some directions."""
    angles = np.arange(directions) * np.pi / directions
    project = np.stack([np.cos(angles), np.sin(angles)])
    return np.abs(np.sort(a @ project, 0) - np.sort(b @ project, 0)).mean()
