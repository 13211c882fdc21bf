"""Between the data's units and the networks': zero mean and unit variance, actions in [-1, 1]."""

import dataclasses

import jax.numpy as jnp

from llmdpd_jax.types import Array, Batch, Statistics, TrajectoryPrompt


def normalise_observation(statistics: Statistics, observation: Array) -> Array:
    """[..., O] in the environment's units -> [..., O] in the networks'."""
    return (observation - statistics.observation_mean) / statistics.observation_std


def action_bounds(statistics: Statistics, action: Array) -> tuple[Array, Array]:
    """Least and largest value of the numbers of an action [..., A], or of a chunk of actions [..., H * A]."""
    steps = action.shape[-1] // statistics.action_low.shape[0]
    return jnp.tile(statistics.action_low, steps), jnp.tile(statistics.action_high, steps)


def normalise_action(statistics: Statistics, action: Array) -> Array:
    """[..., A] in the environment's units -> [..., A] in [-1, 1]; chunks [..., H * A] alike."""
    low, high = action_bounds(statistics, action)
    # Where the data allow a single value (an unbounded action that never varies) there is no width to divide by.
    return 2.0 * (action - low) / jnp.where(high > low, high - low, 1.0) - 1.0


def denormalise_action(statistics: Statistics, action: Array) -> Array:
    """Inverse of `normalise_action`, clipped to the bounds."""
    low, high = action_bounds(statistics, action)
    return low + (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (high - low)


def normalise_trajectory(statistics: Statistics, prompt: TrajectoryPrompt) -> TrajectoryPrompt:
    """A trajectory prompt in the networks' units; padded steps become 0."""
    mask = prompt.mask[..., None]
    return TrajectoryPrompt(
        observations=jnp.where(mask, normalise_observation(statistics, prompt.observations), 0.0),
        actions=jnp.where(mask, normalise_action(statistics, prompt.actions), 0.0),
        rewards=jnp.where(prompt.mask, (prompt.rewards - statistics.reward_mean) / statistics.reward_std, 0.0),
        next_observations=jnp.where(mask, normalise_observation(statistics, prompt.next_observations), 0.0),
        mask=prompt.mask,
    )


def normalise_batch(statistics: Statistics, batch: Batch) -> Batch:
    """A batch in the networks' units.

    The transitions' rewards are scaled but not shifted: a shift would change the worth of ending an episode.
    """
    return dataclasses.replace(
        batch,
        observations=normalise_observation(statistics, batch.observations),
        actions=normalise_action(statistics, batch.actions),
        rewards=batch.rewards / statistics.reward_std,
        next_observations=normalise_observation(statistics, batch.next_observations),
        prompt=normalise_trajectory(statistics, batch.prompt),
    )
