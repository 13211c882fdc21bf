"""Made-up episodes for tests of data."""

import numpy as np


def make_episode(length, tag=0.0, *, ends=False, observation_shape=(3,), action_shape=(2,)):
    """An episode whose values tell where they come from.

    Every observation of step t is `tag + t / 100`, actions are `t / 100`, rewards `tag - t / 100`.
    """
    steps = np.arange(length + 1, dtype=np.float32) / 100

    def spread(values, shape):
        return np.broadcast_to(values.reshape(-1, *[1] * len(shape)), (len(values), *shape)).copy()

    last = np.arange(length) == length - 1
    return {
        "observations": spread(np.float32(tag) + steps, observation_shape),
        "actions": spread(steps[:-1], action_shape),
        "rewards": np.float32(tag) - steps[:-1],
        "terminations": last & ends,
        "truncations": last & (not ends),
        "infos": {},
    }
