"""LLM-Driven Policy Diffusion in JAX/Flax (arXiv 2509.00347).

import llmdpd_jax
policy = llmdpd_jax.load_policy("runs/x")
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Guidance", "Policy", "load_policy"]


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that `import llmdpd_jax` stays light."""
    if name in ("Policy", "load_policy"):
        from llmdpd_jax import policy

        return getattr(policy, name)
    if name == "Guidance":
        from llmdpd_jax.diffusion.guidance import Guidance

        return Guidance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
