"""Trajectory prompts from a user's arrays: cut, padded, or refused with a reason."""

import numpy as np
import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.trajectory import absent_trajectory, make_trajectory_prompt


def trajectory(steps=3):
    """Observation 10 t (and its negative), action t, reward -t."""
    t = np.arange(steps + 1.0)
    return {"observations": np.stack([10 * t, -10 * t], -1), "actions": t[:-1, None], "rewards": -t[:-1]}


def make(data, length=4):
    return make_trajectory_prompt(data, 2, 1, length, "prompt")


def test_a_shorter_trajectory_is_padded():
    prompt = make(trajectory(3), 5)
    np.testing.assert_array_equal(prompt.mask, [True, True, True, False, False])
    np.testing.assert_array_equal(prompt.observations[:, 0], [0, 10, 20, 0, 0])
    np.testing.assert_array_equal(prompt.next_observations[:, 1], [-10, -20, -30, 0, 0])
    np.testing.assert_array_equal(prompt.actions[:, 0], [0, 1, 2, 0, 0])
    np.testing.assert_array_equal(prompt.rewards, [0, -1, -2, 0, 0])
    assert prompt.mask.dtype == bool and prompt.rewards.dtype == np.float32


def test_of_a_longer_trajectory_the_first_steps_are_used():
    prompt = make(trajectory(9), 4)
    assert prompt.mask.all()
    np.testing.assert_array_equal(prompt.observations[:, 0], [0, 10, 20, 30])
    np.testing.assert_array_equal(prompt.next_observations[:, 0], [10, 20, 30, 40])
    np.testing.assert_array_equal(prompt.actions[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(prompt.rewards, [0, -1, -2, -3])


def test_lists_will_do():
    prompt = make({name: array.tolist() for name, array in trajectory(2).items()}, 2)
    np.testing.assert_array_equal(prompt.next_observations, [[10, -10], [20, -20]])


def changed(**fields):
    return {**trajectory(), **fields}


NOT_FINITE = trajectory()["observations"].copy()
NOT_FINITE[1, 1] = np.nan


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "prompt: expected a dict of arrays, found list"),
        ({"observations": np.zeros((4, 2))}, r"prompt: missing \['actions', 'rewards'\]"),
        (changed(actions=[["left"], ["right"], ["left"]]), "prompt: actions is not an array of numbers"),
        (changed(rewards=[[0.0], [1.0, 2.0], 3.0]), "prompt: rewards is not an array of numbers"),
        (changed(observations=NOT_FINITE), "prompt: observations holds values that are not finite"),
        (changed(rewards=[0.0, np.inf, 0.0]), "prompt: rewards holds values that are not finite"),
        (changed(observations=np.zeros((3, 2))), r"prompt: observations has shape \(3, 2\).*\[T\+1, 2\]"),
        (changed(observations=np.zeros((4, 3))), r"prompt: observations has shape \(4, 3\)"),
        (changed(actions=np.zeros((3, 2))), r"prompt: actions has shape \(3, 2\).*\[T, 1\]"),
        (changed(actions=np.zeros(3)), r"prompt: actions has shape \(3,\)"),
        (changed(rewards=np.zeros((3, 1))), r"expected observations .* rewards \[T\]"),
        (changed(rewards=1.0), r"expected observations .* rewards \[T\]"),
        (trajectory(0), "with T >= 1"),
    ],
)
def test_what_cannot_be_used_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        make(data)


def test_an_absent_trajectory_has_no_real_step():
    prompt = absent_trajectory(3, 2)
    assert prompt.observations.shape == prompt.next_observations.shape == (1, 1, 3)
    assert prompt.actions.shape == (1, 1, 2) and not prompt.mask.any()
