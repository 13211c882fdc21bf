"""An LLM that is tuned with the policy: low-rank adapters (LoRA), soft prompts, or both.

The LLM's own weights stay as they are and are no part of the training state. Its states then change with every update,
so it runs inside the update, on the descriptions of the batch; with a frozen LLM it never does.
"""

import hashlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict

from llmdpd_jax.models.llm.layers import ModelConfig
from llmdpd_jax.models.llm.network import hidden_states, random_lora
from llmdpd_jax.prompts.table import normalise_states
from llmdpd_jax.types import Array, TextPrompt, TextStatistics


@struct.dataclass
class FrozenLLM:
    """All of a tuned LLM that tuning does not change."""

    config: ModelConfig = struct.field(pytree_node=False)  # with its lora_rank
    params: dict
    statistics: TextStatistics  # of the states before tuning


def tunes_llm(config: ml_collections.ConfigDict) -> bool:
    """Whether a config has something of the LLM trained."""
    return bool(config.text.lora_rank or config.text.soft_tokens)


def tuned_config(config: ModelConfig, tuning: dict) -> ModelConfig:
    """The config with the rank that the adapters have."""
    ranks = {leaf.shape[-1] for path, leaf in flatten_dict(tuning.get("lora", {})).items() if path[-1] == "a"}
    return replace(config, lora_rank=max(ranks, default=0))


def init_tuning(config: ModelConfig, soft_tokens: int, key: Array) -> dict:
    """What is trained of an LLM: `lora` if the config has a rank, `prefix` [soft_tokens, D] if there are soft tokens.

    Adapters start without effect (Hu et al. 2021, arXiv 2106.09685). Soft tokens (Lester et al. 2021, arXiv 2104.08691)
    start at random, of the size of embedded ones.
    """
    key_lora, key_prefix = jax.random.split(key)
    tuning = {}
    if config.lora_rank:
        tuning["lora"] = random_lora(config, key_lora)
    if soft_tokens:
        tuning["prefix"] = jax.random.normal(key_prefix, (soft_tokens, config.width)) * config.width**-0.5
    return tuning


def tuned_prompt(llm: FrozenLLM, tuning: dict, prompt: TextPrompt) -> TextPrompt:
    """The prompt [..., L] with the tuned LLM's states, in the networks' units, for its `LLMInput`."""
    inputs = prompt.states
    states = hidden_states(llm.config, llm.params, inputs.tokens, inputs.mask, **tuning)
    states = jnp.take_along_axis(states, inputs.places[..., None], axis=-2)
    return prompt.replace(states=normalise_states(llm.statistics, states, prompt.mask))


def tuning_hash(tuning: dict) -> str:
    """SHA-256 over names, shapes and values of what was trained."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tuning):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()
