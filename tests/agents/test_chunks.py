"""Chunks of actions, planned by either denoiser: losses, shapes, and who is told of each prompt by itself."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from networks import randomise
from test_acting import draw
from test_update import constant_critic, constant_denoiser, gradient, largest
from tiny import tiny_agent

from llmdpd_jax.agents.diffusion_ql import Context
from llmdpd_jax.diffusion.guidance import Guidance
from llmdpd_jax.models.dit import DiTDenoiser

KEY = jax.random.key(3)
WIDTH = 8
both = pytest.mark.parametrize("name", ["chunked", "transformer"])


def make_context(name, *batch):
    """Contexts for the agent of that name: a transformer's go on with the prompts' vectors."""
    width = WIDTH * (3 if name == "transformer" else 1)
    return Context(*(draw(seed, *batch, width) for seed in (10, 11, 12)))


def acting_params(tiny):
    """Parameters whose actions vary within the bounds."""
    return {**tiny.state.acting, "denoiser": randomise(tiny.state.params["denoiser"], seed=4, scale=0.2)}


@both
def test_the_critic_bootstraps_from_after_the_chunk(request, name):
    """As for single actions (`test_update.py`), with the discount of three steps: 0.9³ of the least slow value, 2."""
    tiny = request.getfixturevalue(name)
    state = tiny.state.replace(
        params={**tiny.state.params, "critic": constant_critic(tiny.state.params["critic"], [1.0, 1.5, 0.5])},
        target_critic=constant_critic(tiny.state.target_critic, [2.0, 4.0, 3.0]),
    )
    rewards, terminations = np.full((3, 4), -1.0, np.float32), np.zeros((3, 4), bool)
    rewards[0, 0] = rewards[0, 1] = 1.0
    terminations[0, 0] = True
    batch = dataclasses.replace(tiny.batch, rewards=rewards, terminations=terminations)
    metrics = tiny.update(state, batch, tiny.text)[1]
    targets = [1.0, 1.0 + 2 * 0.729, *[-1.0 + 2 * 0.729] * 10]
    squares = [(q - target) ** 2 for q in (1.0, 1.5, 0.5) for target in targets]
    assert metrics["loss/critic"] == pytest.approx(np.mean(squares), rel=1e-5)


@both
def test_a_constant_plan_by_hand(request, name):
    """Every action of a chunk is cloned; reward and next observation are predicted per step."""
    tiny = request.getfixturevalue(name)
    still = jax.tree.map(np.zeros_like, tiny.state.params["model"]["out"])
    params = {
        **tiny.state.params,
        "denoiser": constant_denoiser(tiny.state.params["denoiser"], 0.25),
        "model": {**tiny.state.params["model"], "out": still},
    }
    metrics = tiny.update(tiny.state.replace(params=params), tiny.batch, tiny.text)[1]
    assert tiny.batch.actions.shape == (3, 4, 6)
    cloning = tiny.batch.weights[..., None] * (0.25 - tiny.batch.actions) ** 2
    assert metrics["loss/cloning"] == pytest.approx(np.mean(cloning), rel=1e-4)
    change = tiny.batch.next_observations - tiny.batch.observations
    halves = [np.mean((outcome / 3) ** 2) for outcome in (tiny.batch.rewards, change)]
    assert metrics["loss/model"] == pytest.approx(np.mean(halves), rel=1e-4)


@pytest.mark.slow  # compiles another agent
def test_a_student_may_be_a_transformer():
    """Every network learns, and the student answers with a chunk."""
    tiny = tiny_agent(
        {"agent.policy_improvement": "student", "agent.chunk": 2, "model.denoiser": "dit", "model.depth": 1}
    )
    state, metrics = tiny.update(tiny.state, tiny.batch, tiny.text)
    assert np.isfinite(list(metrics.values())).all()
    assert all(largest(g) > 0.0 for g in gradient(state).values())
    action = tiny.agent.act(state.acting, draw(0, 7, 3), make_context("transformer"), KEY, sampler="student")
    assert action.shape == (7, 4) and np.ptp(action) > 1e-2


@both
def test_any_batch_shape_guided_and_chosen(request, name):
    tiny = request.getfixturevalue(name)
    act = jax.jit(partial(tiny.agent.act, guidance=Guidance(2.0, 0.5, 0.3), best_of=4, steps=2))
    params, observation, context = acting_params(tiny), draw(0, 2, 3, 3), make_context(name)
    action = act(params, observation, context, KEY)
    assert action.shape == (2, 3, 6) and np.isfinite(action).all() and np.ptp(action) > 1e-2
    tiled = jax.tree.map(lambda c: np.broadcast_to(c, (2, 3, *c.shape)), context)
    np.testing.assert_allclose(act(params, observation, tiled, KEY), action, atol=1e-5)


def test_one_step_of_a_transformer_by_hand(transformer):
    params, observation, context = acting_params(transformer), draw(0, 7, 3), make_context("transformer")
    x = jax.random.normal(jax.random.split(KEY)[0], (7, 6))
    network = DiTDenoiser(chunk=3, width=16, depth=2, heads=2, activation="mish")
    answers = network.apply({"params": params["denoiser"]}, x, np.full(7, 3.0), observation, context.full)
    action = transformer.agent.act(params, observation, context, KEY, steps=1)
    np.testing.assert_allclose(action, np.clip(answers, -1, 1), atol=1e-5)


def test_a_warm_start_is_a_chunk(transformer):
    params, observation, context = acting_params(transformer), draw(0, 7, 3), make_context("transformer")
    first = draw(1, 7, 6).clip(-1, 1)
    near = transformer.agent.act(params, observation, context, KEY, steps=1, warm_start=(first, 1 / 3))
    far = transformer.agent.act(params, observation, context, KEY, steps=1, warm_start=(-first, 1 / 3))
    assert near.shape == (7, 6) and np.abs(near - far).max() > 1e-2


def test_only_the_transformer_is_told_each_prompt_by_itself(transformer):
    """Critics read the fused context alone."""
    params, context = acting_params(transformer), make_context("transformer")
    changed = jax.tree.map(lambda c: np.concatenate([c[:WIDTH], c[WIDTH:] + 1.0]), context)
    observation, action = draw(0, 7, 3), draw(1, 7, 6)
    values, act = transformer.agent.values, jax.jit(partial(transformer.agent.act, steps=1))
    np.testing.assert_array_equal(
        values(params, observation, action, context), values(params, observation, action, changed)
    )
    assert np.abs(act(params, observation, context, KEY) - act(params, observation, changed, KEY)).max() > 1e-3


def test_contexts_of_a_transformer_hold_the_prompts(transformer):
    agent, params, trajectory = transformer.agent, transformer.state.params, transformer.batch.prompt
    vectors = agent.read_text(params, transformer.text), agent.read_trajectory(params, trajectory)
    yes, no = np.ones(3, bool), np.zeros(3, bool)
    context, null = agent.fuse(params, *vectors, yes, yes), params["prompt_encoder"]["null"]
    np.testing.assert_allclose(context.full[:, WIDTH : 2 * WIDTH], vectors[0], atol=1e-6)
    np.testing.assert_allclose(context.full[:, 2 * WIDTH :], vectors[1], atol=1e-6)
    for left, there in ((context.without_text, (no, yes)), (context.without_trajectory, (yes, no))):
        np.testing.assert_allclose(left, agent.fuse(params, *vectors, *there).full, atol=1e-6)
    np.testing.assert_allclose(context.without_text[:, WIDTH : 2 * WIDTH], np.tile(null[0], (3, 1)), atol=1e-6)
