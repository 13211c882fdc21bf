"""Tiny agents with parameters drawn at random, and a batch for them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from networks import make_text, make_trajectory, randomise

from llmdpd_jax.agents.diffusion_ql import TrainState
from llmdpd_jax.agents.llmdpd import Agent, make_agent
from llmdpd_jax.config import default_config
from llmdpd_jax.types import Batch, TextPrompt

GROUPS, SIZE, OBSERVATION, ACTION = 3, 4, 3, 2


# The weights, rates and probabilities of the method, which these tests vary within one compilation.
SETTINGS = {
    "cloning_weight": 0.3,
    "eta": 0.7,
    "critic_weight": 1.1,
    "model_weight": 1.3,
    "alignment_weight": 0.6,
    "consistency_weight": 0.9,
    "text_dropout": 0.0,
    "trajectory_dropout": 0.0,
    "prompt_step_dropout": 0.0,
    "discount": 0.9,
    "tau": 0.2,
    "ema_decay": 0.9,
}


class Tiny(NamedTuple):
    """An agent and inputs for it."""

    agent: Agent
    state: TrainState
    batch: Batch
    text: TextPrompt
    update: Callable[..., tuple[TrainState, dict[str, float]]]  # see `tiny_agent`


def make_batch(seed=0, chunk=1):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal((GROUPS, SIZE, *shape)).astype(np.float32)

    weights = rng.uniform(0.2, 2.0, (GROUPS, SIZE)).astype(np.float32)
    return Batch(
        observations=draw(OBSERVATION),
        actions=rng.uniform(-1, 1, (GROUPS, SIZE, chunk * ACTION)).astype(np.float32),
        rewards=draw(),
        next_observations=draw(OBSERVATION),
        terminations=np.arange(GROUPS * SIZE).reshape(GROUPS, SIZE) % 3 == 0,
        task_id=np.arange(GROUPS) % 2,
        prompt=make_trajectory(seed, (GROUPS,), observation_size=OBSERVATION, action_size=ACTION),
        weights=weights / weights.mean(),
    )


def tiny_agent(changes=None) -> Tiny:
    """The default config but tiny, smooth, without prompt dropout and with a state drawn at random.

    `update(state, batch, text, seed, eta=0.0, ...)` runs the agent's update with SETTINGS, changed as named; metrics
    come as plain numbers. It compiles once: to the traced code the settings are arrays.
    """
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.width": 16,
            "model.depth": 2,
            "model.context_width": 8,
            "model.model_width": 8,
            "model.text_layers": 0,
            "model.trajectory_layers": 0,
            "model.critic_ensemble": 3,
            "model.denoiser_activation": "mish",
            "model.critic_activation": "silu",
            "diffusion.steps": 3,
            "optimiser.clip_norm": 1e9,
            "optimiser.learning_rate": 1e-3,
            "agent.detach_context": False,
            **{f"agent.{name}": value for name, value in SETTINGS.items()},
            **(changes or {}),
        }
    )
    agent = make_agent(config, OBSERVATION, ACTION)
    batch, text = make_batch(chunk=config.agent.chunk), make_text(batch=(GROUPS,))
    shapes = jax.eval_shape(agent.init, jax.random.key(0), batch, text)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params = randomise(state.params, seed=0)
    state = state.replace(
        params={**params, "denoiser": randomise(params["denoiser"], seed=1, scale=0.1)},  # actions within the bounds
        target_critic=randomise(state.target_critic, seed=2),
        ema=randomise(state.ema, seed=3),
    )

    @jax.jit
    def compiled(settings, state, batch, text, key):
        traced = config.copy_and_resolve_references()
        with traced.ignore_type():
            for name, value in settings.items():
                traced.agent[name] = value
        return make_agent(traced, OBSERVATION, ACTION).update(state, batch, text, key)

    def update(state, batch, text, seed=7, **changed):
        settings = {name: np.float32(value) for name, value in (SETTINGS | changed).items()}
        state, metrics = jax.device_get(compiled(settings, state, batch, text, jax.random.key(seed)))
        return state, {name: float(value) for name, value in metrics.items()}

    return Tiny(agent, state, batch, text, update)
