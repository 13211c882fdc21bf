"""The transformer denoiser: what it starts as, what its tokens are, and what shared axes and absent prompts change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import make_text, make_trajectory, random_params

from llmdpd_jax.models.dit import Attention, DiTDenoiser
from llmdpd_jax.models.prompt_encoder import PromptEncoder

GROUPS, SIZE, CHUNK, ACTION, CONTEXT = 3, 4, 3, 2, 5
module = DiTDenoiser(chunk=CHUNK, width=8, depth=2, heads=2)


@pytest.fixture(scope="module")
def inputs():
    """Chunks [G, S, 6], steps [G, S], observations [G, S, 3], contexts [G, 1, 15]."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    k = rng.integers(1, 6, (GROUPS, SIZE)).astype(np.float32)
    return draw(GROUPS, SIZE, CHUNK * ACTION), k, draw(GROUPS, SIZE, 3), draw(GROUPS, 1, 3 * CONTEXT)


@pytest.fixture(scope="module")
def params(inputs):
    return random_params(module, *inputs)


@jax.jit
def ask(params, *inputs):
    return module.apply({"params": params}, *inputs)


def test_it_starts_as_zero_and_its_blocks_as_the_identity(inputs):
    params = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    np.testing.assert_array_equal(ask(params, *inputs), 0.0)
    for i in range(2):
        assert not np.any(params[f"block_{i}"]["modulation"]["kernel"])
        assert not np.any(params[f"block_{i}"]["prompts"]["out"]["kernel"])


def test_what_is_shared_equals_what_is_tiled(inputs, params):
    x, k, observation, context = inputs
    output = ask(params, *inputs)
    assert output.shape == x.shape and np.abs(output).min() > 0
    tiled = np.tile(context, (1, SIZE, 1))
    np.testing.assert_allclose(ask(params, x, k, observation, tiled), output, atol=1e-5)
    same = np.full((GROUPS, SIZE), 2.0, np.float32)
    for shared in (np.full((1, 1), 2.0, np.float32), same[:, :1], same[:1]):
        np.testing.assert_allclose(
            ask(params, x, shared, observation, context), ask(params, x, same, observation, context), atol=1e-5
        )


def test_guidance_asks_for_three_contexts_at_once(inputs, params):
    """A context with an axis more than the chunks gives an output for each."""
    x, k, observation, context = inputs
    contexts = np.stack([context, 0.5 * context, -context])
    together = ask(params, x, k, observation[None], contexts)
    assert together.shape == (3, *x.shape)
    for output, one in zip(together, contexts, strict=True):
        np.testing.assert_allclose(output, ask(params, x, k, observation, one), atol=1e-5)


def test_no_batch_axes_and_no_context(inputs):
    x, k, observation, _ = inputs
    none = np.zeros((GROUPS, SIZE, 0), np.float32)
    params = random_params(module, x, k, observation, none)
    assert not any(name in params for name in ("context", "prompt", "kind"))
    output = ask(params, x, k, observation, none)
    assert output.shape == x.shape and np.isfinite(output).all()
    np.testing.assert_allclose(ask(params, x[0, 0], k[0, 0], observation[0, 0], none[0, 0]), output[0, 0], atol=1e-5)


def test_actions_of_a_chunk_are_a_set_but_for_their_places(inputs, params):
    x, k, observation, context = inputs
    order = np.array([2, 0, 1])

    def permuted(array):
        return np.asarray(array).reshape(GROUPS, SIZE, CHUNK, ACTION)[:, :, order].reshape(array.shape)

    placeless = {**params, "position": np.zeros_like(params["position"])}
    plain = ask(placeless, x, k, observation, context)
    np.testing.assert_allclose(ask(placeless, permuted(x), k, observation, context), permuted(plain), atol=1e-5)
    moved = ask(params, permuted(x), k, observation, context)
    assert np.abs(moved - permuted(ask(params, *inputs))).max() > 1e-2


def test_every_action_depends_on_every_input(inputs, params):
    """On the other actions of its chunk, step, observation, fused context and each prompt."""
    x, k, observation, context = (np.array(array) for array in inputs)
    plain = ask(params, x, k, observation, context)
    steps = slice(ACTION), slice(ACTION, 2 * ACTION), slice(2 * ACTION, None)
    for step in steps:
        changed = x.copy()
        changed[..., step] += 1.0
        assert np.abs(ask(params, changed, k, observation, context) - plain).reshape(-1, 6).max(0).min() > 1e-3
    for part in range(3):
        changed = context.copy()
        changed[..., CONTEXT * part : CONTEXT * (part + 1)] += 1.0
        assert np.abs(ask(params, x, k, observation, changed) - plain).reshape(-1, 6).max(0).min() > 1e-4, part
    for other in (ask(params, x, k + 1, observation, context), ask(params, x, k, observation + 1, context)):
        assert np.abs(other - plain).reshape(-1, 6).max(0).min() > 1e-3


def test_one_transition_does_not_see_another(inputs, params):
    x, k, observation, context = inputs
    # Another array, not the same one written to: the first call may still be reading it.
    other = np.array(x)
    other[0, 0] += 1.0
    changed = np.abs(ask(params, other, k, observation, context) - ask(params, *inputs)).max(-1) > 1e-4
    assert changed[0, 0] and changed.sum() == 1


def test_text_and_trajectory_are_told_apart(inputs, params):
    """The same two vectors the other way round are another prompt."""
    x, k, observation, context = inputs
    fused, text, trajectory = np.split(context, 3, axis=-1)
    swapped = np.concatenate([fused, trajectory, text], -1)
    assert np.abs(ask(params, x, k, observation, swapped) - ask(params, *inputs)).max() > 1e-3


def test_attention_by_hand():
    """One head, two tokens, three others."""
    rng = np.random.default_rng(1)
    tokens, others = (rng.standard_normal((n, 4)).astype(np.float32) for n in (2, 3))
    attend = Attention(heads=1)
    params = random_params(attend, tokens, others)

    def dense(name, x):
        return x @ params[name]["kernel"].reshape(4, 4) + params[name]["bias"].reshape(4)

    scores = dense("query", tokens) @ dense("key", others).T / 2.0
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = dense("out", shares @ dense("value", others))
    np.testing.assert_allclose(attend.apply({"params": params}, tokens, others), expected, atol=1e-5)


def test_heads_read_slices_of_their_own():
    """Where the first head's values are 0, only the second's slice of what is read is left."""
    tokens = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    attend = Attention(heads=2)
    params = jax.tree.map(np.array, random_params(attend, tokens, tokens))
    full = attend.apply({"params": params}, tokens, tokens)
    params["value"]["kernel"][:, 0] = params["value"]["bias"][0] = 0.0
    params["out"]["bias"][:] = 0.0
    half = attend.apply({"params": params}, tokens, tokens)
    params["out"]["kernel"][1] = 0.0
    np.testing.assert_allclose(attend.apply({"params": params}, tokens, tokens), 0.0, atol=1e-6)
    assert np.abs(half).max() > 1e-2 and np.abs(full - half).max() > 1e-2


def test_an_absent_prompt_is_not_attended_to(inputs):
    """Its content changes nothing, neither the fused context nor the tokens; its null vector stands for it."""
    x, k, observation, _ = inputs
    encoder = PromptEncoder(width=8, text_layers=0, trajectory_layers=0, keep_prompts=True)
    text, trajectory = make_text(batch=(GROUPS,)), make_trajectory(batch=(GROUPS,))
    yes, no = np.ones(GROUPS, bool), np.zeros(GROUPS, bool)
    encoder_params = random_params(encoder, text, trajectory, yes, yes)
    denoiser_params = random_params(module, x, k, observation, np.zeros((GROUPS, 1, 24), np.float32))

    @jax.jit
    def output(text, trajectory, has_text, has_trajectory):
        context = encoder.apply({"params": encoder_params}, text, trajectory, has_text, has_trajectory)
        return context, ask(denoiser_params, x, k, observation, context[:, None])

    other_text = jax.tree.map(lambda a: a + jnp.ones((), a.dtype) if a.dtype == np.float32 else a, text)
    other_trajectory = trajectory.replace(rewards=trajectory.rewards + 1.0)
    with_text = output(text, trajectory, yes, no)
    np.testing.assert_array_equal(output(text, other_trajectory, yes, no)[1], with_text[1])
    assert np.abs(output(other_text, trajectory, yes, no)[1] - with_text[1]).max() > 1e-3
    with_trajectory = output(text, trajectory, no, yes)
    np.testing.assert_array_equal(output(other_text, trajectory, no, yes)[1], with_trajectory[1])
    assert np.abs(output(text, other_trajectory, no, yes)[1] - with_trajectory[1]).max() > 1e-3
    neither = output(text, trajectory, no, no)
    np.testing.assert_array_equal(output(other_text, other_trajectory, no, no)[1], neither[1])
    null = encoder_params["null"]
    np.testing.assert_allclose(neither[0][:, 8:], np.broadcast_to(null.reshape(-1), (GROUPS, 16)), atol=1e-6)
    np.testing.assert_allclose(with_text[0][:, 16:], np.broadcast_to(null[1], (GROUPS, 8)), atol=1e-6)


def test_prompts_follow_the_context_that_there_is_without_them():
    text, trajectory = make_text(batch=(2,)), make_trajectory(batch=(2,))
    has_text, has_trajectory = np.array([True, False]), np.array([True, True])
    plain, kept = (PromptEncoder(8, text_layers=0, trajectory_layers=0, keep_prompts=keep) for keep in (False, True))
    given = text, trajectory, has_text, has_trajectory
    params = random_params(plain, *given)
    context, fused = (m.apply({"params": params}, *given) for m in (kept, plain))
    assert context.shape == (2, 24)
    np.testing.assert_array_equal(context[:, :8], fused)
    read = plain.apply({"params": params}, text, method="read_text")
    np.testing.assert_allclose(context[0, 8:16], read[0], atol=1e-6)
    read = plain.apply({"params": params}, trajectory, method="read_trajectory")
    np.testing.assert_allclose(context[:, 16:], read, atol=1e-6)
