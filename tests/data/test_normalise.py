"""Units: what is scaled, what is shifted, what stays zero."""

import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.data.normalise import (
    denormalise_action,
    normalise_action,
    normalise_batch,
    normalise_observation,
    normalise_trajectory,
)
from llmdpd_jax.types import Batch, Statistics, TrajectoryPrompt


@pytest.fixture(scope="module")
def statistics():
    return Statistics(
        observation_mean=jnp.array([1.0, -2.0]),
        observation_std=jnp.array([2.0, 0.5]),
        action_low=jnp.array([-1.0, 0.0, 0.7]),
        action_high=jnp.array([3.0, 0.2, 0.7]),  # the last one can only be 0.7
        reward_mean=jnp.array(-4.0),
        reward_std=jnp.array(8.0),
    )


@pytest.fixture(scope="module")
def prompt():
    """One prompt of two steps and one of padding that holds rubbish."""
    return TrajectoryPrompt(
        observations=jnp.array([[[1.0, -2.0], [5.0, -1.0], [9.0, 9.0]]]),
        actions=jnp.array([[[3.0, 0.0, 0.7], [1.0, 0.1, 0.7], [9.0, 9.0, 9.0]]]),
        rewards=jnp.array([[4.0, -4.0, 9.0]]),
        next_observations=jnp.array([[[5.0, -1.0], [-1.0, -2.5], [9.0, 9.0]]]),
        mask=jnp.array([[True, True, False]]),
    )


def test_observations_by_hand(statistics):
    normalised = normalise_observation(statistics, jnp.array([[1.0, -2.0], [5.0, -1.0]]))
    np.testing.assert_allclose(normalised, [[0.0, 0.0], [2.0, 2.0]])


def test_actions_by_hand_and_back(statistics):
    actions = jnp.array([[-1.0, 0.0, 0.7], [3.0, 0.2, 0.7], [0.0, 0.15, 0.7]])
    normalised = normalise_action(statistics, actions)
    np.testing.assert_allclose(normalised[:, :2], [[-1.0, -1.0], [1.0, 1.0], [-0.5, 0.5]], atol=1e-6)
    assert np.isfinite(normalised).all() and np.abs(normalised[:, 2]).max() <= 1.0
    np.testing.assert_allclose(denormalise_action(statistics, normalised), actions, atol=1e-6)


def test_no_action_leaves_the_bounds(statistics):
    actions = denormalise_action(statistics, jnp.array([[-1.5, 2.0, 2.0], [7.0, -1.0001, -3.0]]))
    np.testing.assert_allclose(actions, [[-1.0, 0.2, 0.7], [3.0, 0.0, 0.7]], atol=1e-6)


def test_padded_steps_of_a_prompt_are_zero(statistics, prompt):
    normalised = normalise_trajectory(statistics, prompt)
    np.testing.assert_allclose(normalised.observations, [[[0, 0], [2, 2], [0, 0]]])
    np.testing.assert_allclose(normalised.actions[..., :2], [[[1, -1], [0, 0], [0, 0]]], atol=1e-6)
    np.testing.assert_allclose(normalised.rewards, [[1.0, 0.0, 0.0]])  # shifted and scaled
    np.testing.assert_allclose(normalised.next_observations, [[[2, 2], [-1, -1], [0, 0]]])
    np.testing.assert_array_equal(normalised.actions[:, 2], 0.0)
    np.testing.assert_array_equal(normalised.mask, prompt.mask)


def test_rewards_of_transitions_are_scaled_but_not_shifted(statistics, prompt):
    batch = Batch(
        observations=prompt.observations,
        actions=prompt.actions,
        rewards=jnp.array([[4.0, 0.0, -8.0]]),
        next_observations=prompt.next_observations,
        terminations=jnp.array([[False, True, False]]),
        task_id=jnp.array([3]),
        prompt=prompt,
    )
    normalised = normalise_batch(statistics, batch)
    np.testing.assert_allclose(normalised.rewards, [[0.5, 0.0, -1.0]])
    np.testing.assert_allclose(normalised.observations[0, 1], [2.0, 2.0])
    np.testing.assert_allclose(normalised.next_observations[0, 1], [-1.0, -1.0])
    np.testing.assert_allclose(normalised.actions[0, 1, :2], [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(normalised.prompt.rewards, [[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(normalised.terminations, batch.terminations)
    np.testing.assert_array_equal(normalised.task_id, batch.task_id)
