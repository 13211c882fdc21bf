"""What a decoder LLM goes on to say: greedy generation, with the keys and values of what was read kept."""

from functools import partial

import jax
import jax.numpy as jnp

from llmdpd_jax.models.llm.decoder import Decoder, DecoderConfig


@partial(jax.jit, static_argnames=("config", "count"))
def generate(
    config: DecoderConfig, params: dict, head: jax.Array, tokens: jax.Array, mask: jax.Array, count: int
) -> jax.Array:
    """The most likely next token, `count` times over: int [B, count].

    Args:
        config: of a whole decoder.
        params: its weights.
        head: [V, D], next-token scores are its products with the last state. Many models use their embedding.
        tokens: int [B, L], padded on the left, so that all rows go on at the same place.
        mask: bool [B, L], True at real tokens.
        count: how many tokens, 1 or more.
    """
    decoder, length = Decoder(config), tokens.shape[1]
    mask = jnp.concatenate([mask, jnp.ones((len(mask), count), bool)], axis=1)

    def read(cache: dict, tokens: jax.Array, first: jax.Array | int) -> tuple[jax.Array, dict]:
        """The next tokens [B], and the cache with these in it."""
        states, cache = decoder.apply({"params": params} | cache, tokens, mask, first=first, mutable=["cache"])
        return jnp.argmax(states[:, -1] @ head.T, axis=-1), cache

    def step(carry: tuple[jax.Array, dict], place: jax.Array):
        token, cache = carry
        following, cache = read(cache, token[:, None], place)
        return (following, cache), token

    with jax.default_matmul_precision("highest" if config.dtype == "float32" else None):
        carry = read({}, tokens, 0)
        (last, _), said = jax.lax.scan(step, carry, length + jnp.arange(count - 1))
    return jnp.concatenate([said.T, last[:, None]], axis=1)
