"""Denoiser and critic: formulas, ensembles, contexts that are shared by a group of transitions."""

import jax
import numpy as np
import pytest
from networks import random_params, randomise

from llmdpd_jax.models.critic import ConditionedMLP, Critic, each_by_itself
from llmdpd_jax.models.denoiser import MLPDenoiser
from llmdpd_jax.models.dit import DiTDenoiser
from llmdpd_jax.models.layers import step_embedding

GROUPS, SIZE = 3, 4


@pytest.fixture(scope="module")
def inputs():
    """Observations [G, S, 3], actions [G, S, 2], steps [G, S], contexts [G, 1, 5]."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return draw(GROUPS, SIZE, 3), draw(GROUPS, SIZE, 2), rng.integers(1, 6, (GROUPS, SIZE)), draw(GROUPS, 1, 5)


@pytest.fixture(scope="module")
def critic(inputs):
    observation, action, _, context = inputs
    module = Critic(ensemble=3, width=8, depth=2)
    return module, jax.jit(module.init)(jax.random.key(1), observation, action, context)["params"]


def test_critics_start_different_and_are_separate_networks(critic, inputs):
    observation, action, _, context = inputs
    module, params = critic
    single = ConditionedMLP(1, width=8, depth=2)
    for every in (params, randomise(params)):
        values = module.apply({"params": every}, observation, action, context)
        assert values.shape == (3, GROUPS, SIZE)
        for i in range(3):
            member = jax.tree.map(lambda x: x[i], every["members"])  # noqa: B023
            alone = single.apply({"params": member}, observation, action, context)[..., 0]
            np.testing.assert_allclose(values[i], alone, atol=1e-5)
            for j in range(i):
                assert np.abs(values[i] - values[j]).max() > 0.05


@pytest.mark.parametrize("layer_norm", [True, False])
def test_conditioned_mlp_by_hand(inputs, layer_norm):
    observation, action, _, context = (np.asarray(x) for x in inputs)
    module = ConditionedMLP(2, width=8, depth=2, activation="silu", layer_norm=layer_norm)
    params = random_params(module, observation, action, context)
    kernel = np.concatenate([params[n]["kernel"] for n in ("input", "context")])
    tiled = np.tile(context, (1, SIZE, 1))
    hidden = np.concatenate([observation, action, tiled], -1) @ kernel + params["input"]["bias"]
    for i in range(2):
        if i:
            hidden = hidden @ params["hidden_1"]["kernel"] + params["hidden_1"]["bias"]
        if layer_norm:
            hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
            hidden = hidden * params[f"norm_{i}"]["scale"] + params[f"norm_{i}"]["bias"]
        hidden = hidden / (1 + np.exp(-hidden))
    expected = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, observation, action, context), expected, atol=1e-4)


def test_a_shared_context_equals_a_tiled_one(critic, inputs):
    observation, action, k, context = inputs
    tiled = np.tile(context, (1, SIZE, 1))
    module, params = critic
    shared = module.apply({"params": params}, observation, action, context)
    np.testing.assert_allclose(shared, module.apply({"params": params}, observation, action, tiled), atol=1e-5)
    denoiser = MLPDenoiser(width=8)
    params = random_params(denoiser, action, k, observation, context)
    shared = denoiser.apply({"params": params}, action, k, observation, context)
    np.testing.assert_allclose(shared, denoiser.apply({"params": params}, action, k, observation, tiled), atol=1e-5)
    assert shared.shape == action.shape


def test_denoiser_by_hand(inputs):
    observation, action, k, context = inputs
    module = MLPDenoiser(width=8, depth=2)
    params = jax.jit(module.init)(jax.random.key(0), action, k, observation, context)["params"]
    np.testing.assert_array_equal(module.apply({"params": params}, action, k, observation, context), 0.0)
    params = randomise(params)

    def dense(name, x):
        return np.asarray(x) @ params[name]["kernel"] + params[name]["bias"]

    hidden = dense("action", action) + dense("observation", observation) + dense("context", context)
    hidden = hidden + dense("step", step_embedding(k, 16))
    update = dense("hidden_0", np.maximum(hidden, 0.0))
    hidden = hidden + update * (1.0 + dense("scale_0", context)) + dense("shift_0", context)
    expected = dense("out", np.maximum(hidden, 0.0))
    np.testing.assert_allclose(module.apply({"params": params}, action, k, observation, context), expected, atol=1e-4)


def test_inputs_start_as_if_each_had_a_layer_of_its_own():
    """A small input beside a large one has its own scale: the variance of its rows is one over its size."""
    kernel = each_by_itself([4, 100])(jax.random.key(0), (104, 2000))
    np.testing.assert_allclose(kernel[:4].var(), 1 / 4, rtol=0.05)
    np.testing.assert_allclose(kernel[4:].var(), 1 / 100, rtol=0.05)


@pytest.mark.parametrize("network", ["critic", "mlp", "dit"])
def test_bfloat16_is_near_float32(network, inputs):
    """Hidden layers round to 8 bits; parameters, outputs and gradients stay float32."""
    observation, action, k, context = inputs
    given = (observation, action, context)
    if network == "critic":
        exact, rough = (Critic(width=64, dtype=dtype) for dtype in ("float32", "bfloat16"))
    else:
        given = (action, k, observation, context)
        if network == "mlp":
            exact, rough = (MLPDenoiser(width=64, dtype=dtype) for dtype in ("float32", "bfloat16"))
        else:
            given = (action, k, observation, np.tile(context, 3))
            exact, rough = (DiTDenoiser(width=64, depth=2, dtype=dtype) for dtype in ("float32", "bfloat16"))
    params = random_params(exact, *given)

    def loss(params, module):
        out = module.apply({"params": params}, *given)
        assert out.dtype == np.float32
        return (out**2).mean(), out

    slope = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    slopes, (expected, found) = zip(*[slope(params, module) for module in (exact, rough)], strict=True)
    size = np.abs(expected).max()
    assert 1e-5 * size < np.abs(found - expected).max() < 0.1 * size
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(slopes[1]))
