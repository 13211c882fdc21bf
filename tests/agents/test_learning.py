"""Learning on a problem whose best action is known: the number that the text prompt names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import make_text, make_trajectory

from llmdpd_jax.agents.llmdpd import make_agent
from llmdpd_jax.config import default_config
from llmdpd_jax.data.minari_io import Episodes
from llmdpd_jax.data.sampler import BatchSizes, sample_batch
from llmdpd_jax.data.store import build_store
from llmdpd_jax.types import Batch

GROUPS, SIZE = 8, 16
GOALS = np.float32([0.5, -0.5])


@partial(jax.jit, static_argnums=(0, 1, 2))
def train(agent, draw_batch, steps, key):
    """The state after so many updates, each on a batch of `draw_batch(key)`."""

    def one_update(state, key):
        key_batch, key_update = jax.random.split(key)
        return agent.update(state, *draw_batch(key_batch), key_update)[0], None

    key_init, key_run = jax.random.split(key)
    state = agent.init(key_init, *draw_batch(key_init))
    return jax.lax.scan(one_update, state, jax.random.split(key_run, steps))[0]


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("policy_improvement", ["one_step", "full_chain"])
def test_uniform_data_and_a_named_goal_give_actions_at_the_goal(policy_improvement):
    """One-step episodes with reward -(a - goal)²; logged actions are uniform, so cloning alone would be uniform too."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.width": 32,
            "model.depth": 2,
            "model.context_width": 8,
            "model.model_width": 16,
            "model.text_layers": 0,
            "model.trajectory_layers": 0,
            "agent.policy_improvement": policy_improvement,
            "agent.discount": 0.9,
            "agent.text_dropout": 0.2,
            "agent.trajectory_dropout": 1.0,
            "agent.ema_decay": 0.97,
            "optimiser.learning_rate": 3e-3,
            "train.steps": 1200,
        }
    )
    agent = make_agent(config, 1, 1)
    texts = jax.tree.map(lambda *x: np.stack(x), *[make_text(numbers=(goal,), width=2) for goal in GOALS])
    texts = texts.replace(states=np.zeros_like(texts.states))  # only the number tells the tasks apart
    trajectory = make_trajectory(batch=(GROUPS,), observation_size=1, action_size=1)

    def draw_batch(key):
        keys = jax.random.split(key, 3)
        task_id = jnp.arange(GROUPS) % 2
        actions = jax.random.uniform(keys[0], (GROUPS, SIZE, 1), minval=-1.0)
        observations = jax.random.normal(keys[1], (GROUPS, SIZE, 1))
        return Batch(
            observations=observations,
            actions=actions,
            rewards=-((actions[..., 0] - jnp.asarray(GOALS)[task_id][:, None]) ** 2),
            next_observations=observations,
            terminations=jnp.ones((GROUPS, SIZE), bool),
            task_id=task_id,
            prompt=trajectory,
        ), jax.tree.map(lambda x: jnp.asarray(x)[task_id], texts)

    @jax.jit
    def act(params, has_text):
        """Actions [2, 200] for the two tasks."""
        vectors = (
            agent.read_text(params, texts),
            agent.read_trajectory(params, jax.tree.map(lambda x: x[:2], trajectory)),
        )
        context = agent.fuse(params, *vectors, has_text, jnp.zeros(2, bool))
        context = jax.tree.map(lambda c: c[:, None], context)
        return agent.act(params, jnp.zeros((2, 200, 1)), context, jax.random.key(5))[..., 0]

    state = train(agent, draw_batch, config.train.steps, jax.random.key(0))
    actions = np.asarray(act(state.ema, jnp.ones(2, bool)))
    np.testing.assert_allclose(actions.mean(1), GOALS, atol=0.15)
    assert np.sqrt(np.mean((actions - GOALS[:, None]) ** 2)) < 0.25
    # Without its text the policy cannot tell the tasks apart.
    blind = np.asarray(act(state.ema, jnp.zeros(2, bool)))
    assert abs(np.diff(blind.mean(1))[0]) < 0.2


def turns_store():
    """Two tasks of 200 episodes of 9 steps each; the observation is 1 and -1 by turns.

    Actions are uniform, rewards -(a - goal * observation)². All end by a time limit.
    """
    rng, tasks = np.random.default_rng(0), []
    for goal in GOALS:
        observations = np.float32((-1.0) ** (np.arange(10) + rng.integers(0, 2, (200, 1))))[..., None]
        actions = rng.uniform(-1, 1, (200, 9, 1)).astype(np.float32)
        bounds = np.full(1, -1, np.float32), np.full(1, 1, np.float32)
        rewards = -((actions - goal * observations[:, :-1]) ** 2)[..., 0]
        ends, lengths = np.zeros((200, 9), bool), np.full(200, 9, np.int32)
        tasks.append(Episodes("", observations, actions, rewards, ends, lengths, *bounds))
    return build_store(tasks)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("denoiser", ["mlp", "dit"])
def test_a_chunk_of_actions_does_what_each_of_its_steps_asks_for(denoiser):
    """Planned from the first observation alone: the goal and its opposite by turns, three times."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.denoiser": denoiser,
            "model.heads": 2,
            "model.width": 32,
            "model.depth": 2,
            "model.context_width": 8,
            "model.model_width": 16,
            "model.text_layers": 0,
            "model.trajectory_layers": 0,
            "agent.chunk": 3,
            "agent.discount": 0.9,
            "agent.text_dropout": 0.0,
            "agent.trajectory_dropout": 1.0,
            "agent.ema_decay": 0.97,
            "optimiser.learning_rate": 3e-3,
            "train.steps": 2500,
        }
    )
    agent, store = make_agent(config, 1, 1), turns_store()
    texts = jax.tree.map(lambda *x: np.stack(x), *[make_text(numbers=(goal,), width=2) for goal in GOALS])
    texts = texts.replace(states=np.zeros_like(texts.states))

    def draw_batch(key):
        batch = sample_batch(store, jax.random.split(key, GROUPS), BatchSizes(GROUPS, SIZE, 4, chunk=3, discount=0.9))
        return batch, jax.tree.map(lambda x: jnp.asarray(x)[batch.task_id], texts)

    @jax.jit
    def act(params):
        """Chunks [2 tasks, 2 observations, 100, 3]."""
        text, no = agent.read_text(params, texts), jnp.zeros(2, bool)
        context = jax.tree.map(lambda c: c[:, None, None], agent.fuse(params, text, text, ~no, no))
        observation = jnp.broadcast_to(jnp.array([1.0, -1.0])[:, None, None], (2, 2, 100, 1))
        return agent.act(params, observation, context, jax.random.key(5))

    plans = np.asarray(act(train(agent, draw_batch, config.train.steps, jax.random.key(0)).ema))
    turns = np.array([[1, -1, 1], [-1, 1, -1]])
    expected = GOALS[:, None, None] * turns
    # Cloning alone would give means of 0, 0.5 away.
    assert (np.sign(plans.mean(2)) == np.sign(expected)).all()
    assert np.sqrt(np.mean((plans.mean(2) - expected) ** 2)) < 0.2
    assert np.sqrt(np.mean((plans - expected[:, :, None]) ** 2)) < 0.3
