"""Classifier-free guidance with a weight of its own for each prompt, and guidance by a gradient."""

import jax.numpy as jnp
import numpy as np
from flax import struct

from llmdpd_jax.errors import UserError
from llmdpd_jax.types import Array


@struct.dataclass
class Guidance:
    """How strongly each prompt steers, and how strongly the critic.

    Of a prompt 1 is plain conditioning, 0 ignores it, above 1 exaggerates it. Weights are traced values: sweeping them
    does not recompile.
    """

    text: Array | float = 1.0  # [] or any shape that broadcasts with the batch
    trajectory: Array | float = 1.0
    critic: Array | float | None = None  # None: the critic has no say, and its gradient is not computed


def check_guidance(guidance: Guidance) -> Guidance:
    """The guidance itself. Raises UserError unless its weights are finite numbers."""
    for name, weight in vars(guidance).items():
        if weight is not None and not np.isfinite(weight).all():
            raise UserError(f"{name}_guidance: {weight} is out of range; weights are finite numbers")
    return guidance


def combine(guidance: Guidance, full: Array, without_text: Array, without_trajectory: Array) -> Array:
    """Guided estimate of the clean action from three estimates, each [..., A].

    `full + (w_text - 1)(full - without_text) + (w_trajectory - 1)(full - without_trajectory)`: with both weights 1
    exactly the conditional estimate, and with one prompt given alone the usual rule of Ho & Salimans (2022) for it.
    """
    w_text, w_trajectory = (jnp.asarray(w)[..., None] for w in (guidance.text, guidance.trajectory))
    return full + (w_text - 1.0) * (full - without_text) + (w_trajectory - 1.0) * (full - without_trajectory)


def follow(weight: Array | float, sigma: Array, x0: Array, gradient: Array) -> Array:
    """The clean action [..., A] moved along a gradient [..., A] of what is to be raised, by weight sigma².

    Classifier guidance (Dhariwal & Nichol 2021, eq. 14): raising log p by its gradient at x_t moves the estimate of x0
    by sigma² / alpha times it. Here the gradient is taken at the estimate itself, not through the denoiser, and the
    1 / alpha is left out, with which it would overrule everything at the start of a chain.

    Args:
      sigma: [...] standard deviation of the noise; counts as at most 1.
    """
    return x0 + (jnp.asarray(weight) * jnp.minimum(sigma, 1.0) ** 2)[..., None] * gradient
