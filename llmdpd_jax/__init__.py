"""LLM-Driven Policy Diffusion in JAX/Flax (arXiv 2509.00347)."""

__version__ = "0.1.0"
