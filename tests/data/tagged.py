"""Episodes whose values tell where they come from, and checks of batches drawn from them.

Observation 100 x episode + step, reward its negative, action [episode, step]; episodes of even number end truly.
"""

import numpy as np

LENGTHS = ([5, 2, 7], [3, 3], [6, 1, 4, 2])  # episodes of three tasks
ALL_LENGTHS = np.concatenate(LENGTHS)
TASK_OF = np.repeat([0, 1, 2], [3, 2, 4])


def origin(observations):
    """Episode and step an observation comes from."""
    return np.divmod(np.asarray(observations)[..., 0].astype(int), 100)


def check_transitions(batch):
    """The parts of each transition are of one step of an episode of the batch's task."""
    episode, step = origin(batch.observations)
    assert (step < ALL_LENGTHS[episode]).all()
    np.testing.assert_array_equal(batch.next_observations, batch.observations + 1)
    np.testing.assert_array_equal(batch.actions, np.stack([episode, step], -1))
    np.testing.assert_array_equal(batch.rewards, -batch.observations[..., 0])
    np.testing.assert_array_equal(TASK_OF[episode], np.broadcast_to(batch.task_id[:, None], episode.shape))
    ends = (step == ALL_LENGTHS[episode] - 1) & (episode % 2 == 0)
    np.testing.assert_array_equal(batch.terminations, ends)


def check_prompts_are_of_other_episodes(batch):
    """The prompt is an episode of the same task, and none that transitions are of."""
    episode, _ = origin(batch.observations)
    prompt, _ = origin(batch.prompt.observations[:, 0])
    np.testing.assert_array_equal(TASK_OF[prompt], batch.task_id)
    assert (episode != prompt[:, None]).all()


def check_windows(prompt, length):
    """Windows are consecutive real steps followed by padding; the whole episode where it is short enough.

    Returns episode and first step of each.
    """
    episode, start = origin(prompt.observations[:, 0])
    real = np.minimum(ALL_LENGTHS[episode], length)
    np.testing.assert_array_equal(prompt.mask, np.arange(length) < real[:, None])
    np.testing.assert_array_equal(start[ALL_LENGTHS[episode] <= length], 0)
    step = start[:, None] + np.arange(length)
    expected = np.where(prompt.mask, 100 * episode[:, None] + step, 0)
    np.testing.assert_array_equal(prompt.observations[..., 0], expected)
    np.testing.assert_array_equal(prompt.next_observations[..., 0], np.where(prompt.mask, expected + 1, 0))
    np.testing.assert_array_equal(prompt.rewards, -expected)
    np.testing.assert_array_equal(prompt.actions[..., 1], np.where(prompt.mask, step, 0))
    return episode, start
