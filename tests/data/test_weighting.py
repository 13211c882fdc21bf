"""How often better episodes are drawn than worse ones of their task."""

import numpy as np

from llmdpd_jax.data.weighting import MOST_WEIGHT, return_weights


def test_weights_by_hand():
    returns = np.array([-10.0, 0.0, 10.0, 7.0, 7.0])
    weights = return_weights(returns, np.full(5, 20), np.array([0, 0, 0, 1, 1]), temperature=0.5)
    # Half a width below the best is exp(-1) of it, a whole one exp(-2); episodes that return the same count the same.
    assert weights.tolist() == [139, 377, 1024, 1024, 1024] and weights.dtype == np.int32


def test_every_episode_is_drawn_however_cold():
    weights = return_weights(np.array([0.0, 0.5, 1.0]), np.full(3, 20), np.zeros(3, int), temperature=0.001)
    assert weights.tolist() == [1, 1, MOST_WEIGHT]


def test_the_weighted_steps_of_a_task_can_be_counted():
    lengths = np.array([5_000_000, 5_000_000, 10])
    weights = return_weights(np.array([1.0, 1.0, 0.0]), lengths, np.zeros(3, int), temperature=1.0)
    assert 100 < weights.max() < MOST_WEIGHT
    assert (weights.astype(np.int64) * lengths).sum() < 2**31


def test_tasks_are_told_apart():
    """A task's returns are measured by its own best and worst, whatever others return."""
    one = return_weights(np.array([1.0, 2.0, 4.0]), np.full(3, 9), np.zeros(3, int), temperature=0.2)
    both = return_weights(
        np.array([1.0, 2.0, 4.0, 100.0, 200.0, 400.0]), np.full(6, 9), np.repeat([0, 1], 3), temperature=0.2
    )
    assert both.tolist() == [*one, *one]
