"""Small Minari data sets with known contents."""

import warnings

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

BOX = gym.spaces.Box(-1, 1, (2,), np.float32)
OBSERVATION = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)


@pytest.fixture
def write_dataset(minari_root):
    """`write_dataset(id, episodes)` writes a Minari data set of episodes as `logged.make_episode` gives them."""

    def write(name, episodes, observation_space=OBSERVATION, action_space=BOX):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return minari.create_dataset_from_buffers(
                name,
                [EpisodeBuffer(**episode) for episode in episodes],
                observation_space=observation_space,
                action_space=action_space,
            )

    return write
