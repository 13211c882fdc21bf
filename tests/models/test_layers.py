"""Building blocks against their formulas, and what masks hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_params

from llmdpd_jax.errors import UserError
from llmdpd_jax.models.layers import (
    MLP,
    AttentionPool,
    TransformerBlock,
    activation,
    mish,
    step_embedding,
)


def test_mish_is_x_tanh_softplus():
    x = jnp.concatenate([jnp.linspace(-30.0, 30.0, 601), jnp.array([-1e4, 90.0, 1e4])])
    np.testing.assert_allclose(mish(x), x * jnp.tanh(jax.nn.softplus(x)), atol=1e-5, rtol=1e-5)
    slope = jax.vmap(jax.grad(mish))(x)
    reference = jax.vmap(jax.grad(lambda x: x * jnp.tanh(jax.nn.softplus(x))))(x)
    np.testing.assert_allclose(slope, reference, atol=1e-4)


def test_activations_by_name():
    assert activation("relu")(jnp.array(-2.0)) == 0.0
    np.testing.assert_allclose(activation("silu")(jnp.array(1.0)), 1 / (1 + np.exp(-1)), rtol=1e-6)
    with pytest.raises(UserError, match=r"activation: 'swishh' is unknown.*gelu.*mish.*relu.*silu"):
        activation("swishh")


def test_step_embedding_by_hand():
    embedding = step_embedding(jnp.array([[0, 3]]), 16)
    assert embedding.shape == (1, 2, 16)
    frequencies = 10_000.0 ** (-np.arange(8) / 7)
    np.testing.assert_allclose(embedding[0, 0], np.repeat([0.0, 1.0], 8), atol=1e-7)
    np.testing.assert_allclose(
        embedding[0, 1], np.concatenate([np.sin(3 * frequencies), np.cos(3 * frequencies)]), atol=1e-6
    )


def test_mlp_by_hand():
    x = jax.random.normal(jax.random.key(0), (7, 3))
    for layer_norm in (False, True):
        mlp = MLP(width=4, depth=2, layer_norm=layer_norm)
        params = random_params(mlp, x)
        hidden = np.asarray(x)
        for i in range(2):
            hidden = hidden @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
            if layer_norm:
                norm = params[f"LayerNorm_{i}"]
                hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
                hidden = hidden * norm["scale"] + norm["bias"]
            hidden = np.maximum(hidden, 0.0)
        np.testing.assert_allclose(mlp.apply({"params": params}, x), hidden, atol=1e-5)


MASK = jnp.array([[True, True, False, True, False], [True, False, False, False, False]])


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(0), (2, 5, 8))


@pytest.fixture(
    scope="module",
    params=[AttentionPool(8), TransformerBlock(), TransformerBlock(reach=2)],
    ids=["pool", "block", "near"],
)
def layer(request, tokens):
    """A function (tokens, mask) -> real outputs only, of a layer with parameters drawn at random."""
    params = random_params(request.param, tokens, MASK)

    @jax.jit
    def apply(tokens, mask):
        out = request.param.apply({"params": params}, tokens, mask)
        return out if out.ndim < tokens.ndim else jnp.where(mask[..., None], out, 0.0)

    return apply


def test_masked_tokens_change_nothing(layer, tokens):
    disturbed = jnp.where(MASK[..., None], tokens, 100.0 * tokens - 7.0)
    np.testing.assert_allclose(layer(disturbed, MASK), layer(tokens, MASK), atol=1e-6)
    # ... and removing them neither.
    np.testing.assert_allclose(
        layer(tokens[1:, :1], MASK[1:, :1])[0].ravel()[:8], layer(tokens, MASK)[1].ravel()[:8], atol=1e-5
    )


def test_masked_tokens_have_no_gradient_and_real_ones_have(layer, tokens):
    gradient = np.asarray(jax.grad(lambda t: (layer(t, MASK) ** 2).sum())(tokens))
    size = np.abs(gradient).max(-1)
    assert (size[~MASK] == 0.0).all()
    assert (size[MASK] > 1e-4).all()


def test_attention_pool_by_hand(tokens):
    pool = AttentionPool(width=8, queries=2)
    params = random_params(pool, tokens, MASK, scale=1.0)
    scores = np.asarray(tokens) @ params["scores"]["kernel"]  # [2, 5, queries]
    values = np.einsum("bld,dqh->blqh", tokens, params["values"]["kernel"]) + params["values"]["bias"]
    pooled = np.zeros((2, 2, 4), np.float32)
    for b in range(2):
        real = np.flatnonzero(MASK[b])
        for q in range(2):
            weights = np.exp(scores[b, real, q])
            pooled[b, q] = (weights[:, None] * values[b, real, q]).sum(0) / weights.sum()
    expected = pooled.reshape(2, 8) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(pool.apply({"params": params}, tokens, MASK), expected, atol=1e-4)


def test_nothing_to_read_is_still_finite(layer, tokens):
    gradient = jax.grad(lambda t: layer(t, jnp.zeros_like(MASK)).sum())(tokens)
    assert np.isfinite(layer(tokens, jnp.zeros_like(MASK))).all() and np.isfinite(gradient).all()


def attend_by_hand(params, tokens, reach):
    """Where the block's attention, of one head, makes each token look: [L, L]."""
    normed = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    normed = normed * params["LayerNorm_0"]["scale"] + params["LayerNorm_0"]["bias"]
    query, key = (
        normed @ params["attention"][name]["kernel"][:, 0] + params["attention"][name]["bias"][0]
        for name in ("query", "key")
    )
    scores = query @ key.T / np.sqrt(query.shape[-1])
    for i in range(len(tokens)):
        for j in range(len(tokens)):
            scores[i, j] += params["distance_bias"][0, np.clip(j - i, -reach, reach) + reach]
    return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


def test_attention_knows_distances(tokens):
    """Parity with attention written out, for a block of one head whose MLP adds nothing."""
    one, block = np.asarray(tokens[0]), TransformerBlock(heads=1, reach=2)
    mask = jnp.ones((1, 5), bool)
    params = jax.tree.map(np.asarray, random_params(block, tokens[:1], mask, scale=0.5))
    params["Dense_1"] = jax.tree.map(np.zeros_like, params["Dense_1"])
    weights = attend_by_hand(params, one, reach=2)
    normed = (one - one.mean(-1, keepdims=True)) / np.sqrt(one.var(-1, keepdims=True) + 1e-6)
    normed = normed * params["LayerNorm_0"]["scale"] + params["LayerNorm_0"]["bias"]
    attention = params["attention"]
    values = normed @ attention["value"]["kernel"][:, 0] + attention["value"]["bias"][0]
    expected = one + weights @ values @ attention["out"]["kernel"][0] + attention["out"]["bias"]
    np.testing.assert_allclose(block.apply({"params": params}, tokens[:1], mask)[0], expected, atol=1e-4)


def test_distance_biases_begin_with_a_slope_per_head():
    block = TransformerBlock(heads=4, reach=3)
    tokens, mask = jnp.zeros((5, 8)), jnp.ones(5, bool)
    biases = block.init(jax.random.key(0), tokens, mask)["params"]["distance_bias"]
    np.testing.assert_allclose(biases[0], [-3, -2, -1, 0, -1, -2, -3])
    np.testing.assert_allclose(biases[3], np.array([-3, -2, -1, 0, -1, -2, -3]) / 8)
