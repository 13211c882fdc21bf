"""Classifier-free guidance with a weight of its own for each prompt."""

import jax.numpy as jnp
from flax import struct

from llmdpd_jax.types import Array


@struct.dataclass
class Guidance:
    """How strongly each prompt steers. 1 is plain conditioning, 0 ignores the prompt, above 1 exaggerates it.

    Weights are traced values: sweeping them does not recompile.
    """

    text: Array | float = 1.0  # [] or any shape that broadcasts with the batch
    trajectory: Array | float = 1.0


def combine(guidance: Guidance, full: Array, without_text: Array, without_trajectory: Array) -> Array:
    """Guided estimate of the clean action from three estimates, each [..., A].

    `full + (w_text - 1)(full - without_text) + (w_trajectory - 1)(full - without_trajectory)`: with both weights 1
    exactly the conditional estimate, and with one prompt given alone the usual rule of Ho & Salimans (2022) for it.
    """
    w_text, w_trajectory = (jnp.asarray(w)[..., None] for w in (guidance.text, guidance.trajectory))
    return full + (w_text - 1.0) * (full - without_text) + (w_trajectory - 1.0) * (full - without_trajectory)
