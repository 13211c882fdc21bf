"""Guidance with a weight for each prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.diffusion.guidance import Guidance, check_guidance, combine, follow
from llmdpd_jax.errors import UserError


@pytest.fixture(scope="module")
def estimates():
    """Clean actions [4, 2] with both prompts, without text, without trajectory."""
    return tuple(jax.random.uniform(jax.random.key(s), (4, 2), minval=-1.0) for s in range(3))


def test_weights_of_one_are_plain_conditioning(estimates):
    np.testing.assert_array_equal(combine(Guidance(), *estimates), estimates[0])


def test_a_weight_of_zero_leaves_the_prompt_out(estimates):
    _, without_text, without_trajectory = estimates
    np.testing.assert_allclose(combine(Guidance(0.0, 1.0), *estimates), without_text, atol=1e-6)
    np.testing.assert_allclose(combine(Guidance(1.0, 0.0), *estimates), without_trajectory, atol=1e-6)


def test_weights_are_finite_numbers():
    assert check_guidance(Guidance(-1.0, jnp.array([0.5, 2.0]), 0.3)).critic == 0.3
    for name, weight in (("text", float("nan")), ("trajectory", float("-inf")), ("critic", float("inf"))):
        with pytest.raises(UserError, match=f"{name}_guidance: {weight} is out of range"):
            check_guidance(Guidance(**{name: weight}))


def test_numbers_by_hand():
    full, without_text, without_trajectory = jnp.array([0.5]), jnp.array([0.1]), jnp.array([0.7])
    # 0.5 + (2 - 1) 0.4 + (3 - 1) (-0.2)
    np.testing.assert_allclose(combine(Guidance(2.0, 3.0), full, without_text, without_trajectory), [0.5], atol=1e-6)
    # 0.5 + (1.5 - 1) 0.4 + (0.5 - 1) (-0.2)
    np.testing.assert_allclose(combine(Guidance(1.5, 0.5), full, without_text, without_trajectory), [0.8], atol=1e-6)


def test_one_prompt_alone_is_classifier_free_guidance(estimates):
    conditional, unconditional, _ = estimates
    # Text alone: leaving the trajectory out changes nothing, and its weight must not matter.
    for trajectory_weight in (0.0, 1.0, 4.0):
        guided = combine(Guidance(2.5, trajectory_weight), conditional, unconditional, conditional)
        np.testing.assert_allclose(guided, unconditional + 2.5 * (conditional - unconditional), atol=1e-6)


def test_a_weight_per_batch_entry(estimates):
    weights = jnp.array([0.0, 1.0, 2.0, 3.0])
    guided = combine(Guidance(weights, 1.0), *estimates)
    for i in range(4):
        alone = combine(Guidance(float(weights[i]), 1.0), *(e[i] for e in estimates))
        np.testing.assert_allclose(guided[i], alone, atol=1e-6)


def test_sweeping_weights_compiles_once(estimates):
    compilations = []

    @jax.jit
    def guided(guidance):
        compilations.append(1)
        return combine(guidance, *estimates)

    outputs = [guided(Guidance(text, trajectory)) for text in (0.0, 1.0, 2.5) for trajectory in (0.5, 1.0)]
    assert len(compilations) == 1
    assert len({float(output[0, 0]) for output in outputs}) == 6


def test_following_a_gradient_by_hand():
    """Weight 2, sigma 0.5: the clean action moves by 2 * 0.25 of the gradient; noise beyond 1 counts as 1."""
    x0, gradient = jnp.array([[0.1, 0.2]]), jnp.array([[1.0, -0.4]])
    np.testing.assert_allclose(follow(2.0, jnp.array([0.5]), x0, gradient), [[0.6, 0.0]], atol=1e-6)
    np.testing.assert_allclose(follow(0.1, jnp.array([80.0]), x0, gradient), [[0.2, 0.16]], atol=1e-6)
    each = follow(jnp.array([0.0, 1.0]), jnp.array([1.0]), jnp.tile(x0, (2, 1)), gradient)
    np.testing.assert_allclose(each, [[0.1, 0.2], [1.1, -0.2]], atol=1e-6)
