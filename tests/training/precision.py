"""Double precision, if the command line asks for it. Imported before Flax and the library, which ask for single."""

import sys

import jax
import jax.numpy as jnp

DOUBLE = "--double" in sys.argv
if DOUBLE:
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64
