"""Language models of all families through one call: config and weights in, hidden states out."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.bert import Bert, BertConfig
from llmdpd_jax.models.llm.decoder import Decoder
from llmdpd_jax.models.llm.layers import ModelConfig


def build(config: ModelConfig) -> nn.Module:
    """The module that a config describes."""
    return Bert(config) if isinstance(config, BertConfig) else Decoder(config)


@partial(jax.jit, static_argnames="config")
def hidden_states(
    config: ModelConfig,
    params: dict,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    lora: dict | None = None,
    prefix: jax.Array | None = None,
    kept: jax.Array | None = None,
) -> jax.Array:
    """Hidden states, float32, of token ids [B, L] after the last block of `config`: [B, L, D], or [G, N, D] of `kept`.

    float32 matrix products are exact float32 on every backend (accelerators would round them to fewer bits by
    default), so that embeddings cached on one machine serve on another.

    Args:
        config: of a decoder or a BERT, usually truncated.
        params: its weights.
        tokens: token ids.
        mask: bool [B, L], True at real tokens; padding may be left or right. A decoder needs none if all of it is on
            the right. States at padded places are to be ignored.
        lora: adapters as `random_lora` makes them; given exactly if the config's `lora_rank` is not 0.
        prefix: a soft prompt [P, D], read before the tokens. It stands where embedded tokens do.
        kept: int [G, N], the rows being G groups of B/G: the places in each group's B/G * L that are computed. All real
            tokens must be among them; places may occur twice. None: all are computed.

    Raises: UserError if prefix and tokens are longer than the model's context, or adapters and config do not agree.
    """
    length = tokens.shape[1] + (0 if prefix is None else len(prefix))
    if length > config.max_length:
        raise UserError(f"tokens: {length} with the soft prompt, the model reads at most {config.max_length}")
    if bool(config.lora_rank) != (lora is not None):
        raise UserError(
            f"lora: adapters {'missing' if lora is None else 'given'}, the config's rank is {config.lora_rank}"
        )
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    with jax.default_matmul_precision("highest" if config.dtype == "float32" else None):
        return build(config).apply(variables, tokens, mask, prefix, kept).astype(jnp.float32)


@partial(jax.jit, static_argnames="config")
def random_params(config: ModelConfig, key: jax.Array) -> dict:
    """Weights as at the start of pre-training: normal with deviation width^-0.5, norm scales one, biases zero."""
    return build(config).init({"params": key, "lora": key}, jnp.zeros((1, 1), jnp.int32))["params"]


@partial(jax.jit, static_argnames="config")
def random_lora(config: ModelConfig, key: jax.Array) -> dict:
    """Adapters at the start of training, which change nothing yet. The config's `lora_rank` says how wide they are."""
    return build(config).init({"params": key, "lora": key}, jnp.zeros((1, 1), jnp.int32))["lora"]
