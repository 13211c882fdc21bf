"""How much better episodes are cloned than worse ones of their task."""

import numpy as np

from llmdpd_jax.data.weighting import return_weights


def test_weights_by_hand():
    returns, task_id = np.array([-10.0, 0.0, 10.0, 7.0, 7.0]), np.array([0, 0, 0, 1, 1])
    weights = return_weights(returns, np.full(5, 20), task_id, temperature=0.5)
    # Half a width below the best is exp(-1) of it, a whole one exp(-2); their mean is 1.
    whole = 1 + np.exp(-1) + np.exp(-2)
    np.testing.assert_allclose(weights[:3], 3 * np.exp([-2, -1, 0]) / whole, rtol=1e-6)
    assert weights[3:].tolist() == [1, 1] and weights.dtype == np.float32  # they all return the same


def test_it_is_transitions_whose_mean_is_one():
    lengths, task_id = np.array([5, 20, 1]), np.zeros(3, int)
    weights = return_weights(np.array([0.0, 1.0, 3.0]), lengths, task_id, temperature=0.3)
    np.testing.assert_allclose(np.average(weights, weights=lengths), 1.0, rtol=1e-6)


def test_the_best_alone_however_cold():
    weights = return_weights(np.array([0.0, 0.5, 1.0]), np.full(3, 20), np.zeros(3, int), temperature=1e-9)
    assert weights.tolist() == [0, 0, 3]


def test_tasks_are_told_apart():
    """A task's returns are measured by its own best and worst, whatever others return."""
    one = return_weights(np.array([1.0, 2.0, 4.0]), np.full(3, 9), np.zeros(3, int), temperature=0.2)
    returns = np.array([1.0, 2.0, 4.0, 100.0, 200.0, 400.0])
    both = return_weights(returns, np.full(6, 9), np.repeat([0, 1], 3), temperature=0.2)
    np.testing.assert_allclose(both, [*one, *one], rtol=1e-6)
