"""Policies with random parameters, whose units are no round numbers: untrained, but lively, and made at once."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from networks import randomise

from llmdpd_jax import Policy
from llmdpd_jax.agents.diffusion_ql import ACTING, TrainState
from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.config import default_config
from llmdpd_jax.models.llm.encoder import TextEncoder, encoder_settings
from llmdpd_jax.training.checkpoint import Checkpoint, initial_state, make_metadata
from llmdpd_jax.types import Statistics, TextStatistics

SIZES = 3, 2  # of observations and actions
SMALL = {
    "text.layer": 2,
    "data.prompt_length": 5,
    "evaluation.sampler": "ddim",
    "model.context_width": 16,
    "model.model_width": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.text_layers": 0,
    "model.trajectory_layers": 1,
    "model.heads": 2,
}


def untrained_policy(llm: Path, changes=None) -> Policy:
    """A policy of the small config with these changes, that reads texts with the LLM in a folder."""
    random = np.random.default_rng(0)

    def array(*shape, least=-1.0, most=1.0):
        return jnp.asarray(random.uniform(least, most, shape), jnp.float32)

    config = default_config()
    config.update_from_flattened_dict({"text.source": str(llm), **SMALL, **(changes or {})})
    encoder, (o, a) = TextEncoder(encoder_settings(config.text)), SIZES
    width = encoder.width
    units = Statistics(
        observation_mean=array(o),
        observation_std=array(o, least=0.5),
        action_low=array(a, least=-3, most=-2),
        action_high=array(a, least=1, most=2),
        reward_mean=array(),
        reward_std=array(least=0.5),
    )
    text_units = TextStatistics(array(width), array(width, least=0.5), array(width, width), array(least=0.5))
    manifest = {"family": "harbour", "horizon": 15, "digest": "0"}
    metadata = make_metadata(config, units, text_units, encoder.identity, {}, manifest)
    agent = make_agent(config, o, a)
    shapes = jax.eval_shape(partial(initial_state, agent, metadata, tuning={}), jax.random.key(0))
    params = jax.tree.map(jnp.asarray, randomise(shapes.params, scale=0.2))
    acting = {name: params[name] for name in ACTING if name in params}
    state = TrainState(jnp.int32(7), params, params["critic"], acting, ())
    return Policy(Checkpoint(agent, config, state, units, text_units, metadata, Path("runs/x/checkpoints/7")))


def logged(seed=0, steps=4):
    """A trajectory, as `Policy.prompt` takes it."""
    random = np.random.default_rng(seed)
    return {
        "observations": random.uniform(-1, 1, (steps + 1, SIZES[0])).astype(np.float32),
        "actions": random.uniform(-2, 1, (steps, SIZES[1])).astype(np.float32),
        "rewards": -random.uniform(0, 1, steps).astype(np.float32),
    }
