"""Parameters and prompts for tests of networks."""

import jax
import numpy as np

from llmdpd_jax.types import TextPrompt, TrajectoryPrompt


def random_params(module, *inputs, seed=0, scale=0.3):
    """Parameters of a module for inputs of these shapes, normal values everywhere.

    Fresh networks hide much, for their last layers and biases are 0. Shapes alone are traced: nothing is compiled.
    """
    return randomise(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"], seed, scale)


def randomise(params, seed=0, scale=0.3):
    """The same tree with normal values everywhere."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(scale * rng.standard_normal(x.shape)), params)


def make_text(seed=0, batch=(), length=6, real=4, width=5, numbers=(0.3, -0.7)):
    """A text prompt whose tokens 1 and 2 spell the numbers; tokens from `real` on are padding."""
    mask = np.broadcast_to(np.arange(length) < real, (*batch, length))
    states = np.random.default_rng(seed).standard_normal((*batch, length, width))
    values, index = np.zeros(mask.shape, np.float32), np.full(mask.shape, -1, np.int32)
    values[..., 1 : 1 + len(numbers)], index[..., 1 : 1 + len(numbers)] = numbers, np.arange(len(numbers))
    return TextPrompt(np.float32(np.where(mask[..., None], states, 0.0)), mask, values, index)


def make_trajectory(seed=0, batch=(), length=5, real=3, observation_size=3, action_size=2):
    """A trajectory prompt; steps from `real` on are padding."""
    rng = np.random.default_rng(seed)
    mask = np.broadcast_to(np.arange(length) < real, (*batch, length))

    def draw(*size):
        values = rng.standard_normal((*mask.shape, *size))
        return np.float32(np.where(mask.reshape(*mask.shape, *[1] * len(size)), values, 0.0))

    return TrajectoryPrompt(draw(observation_size), draw(action_size), draw(), draw(observation_size), mask)
