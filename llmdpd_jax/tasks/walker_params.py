"""walker_params: a walker that has to get ahead, whose masses, inertias, dampings and friction only the prompt tells.

Rewards, ends and tasks are in `dynamics.py`. Physics: Brax, `generalized`, steps of 0.008 s; an episode ends where the
torso is not between 0.8 and 2 m high or leans by more than 1 rad.
"""

import functools

from llmdpd_jax.tasks.dynamics import make_family
from llmdpd_jax.tasks.family import TaskFamily


@functools.cache
def walker_params() -> TaskFamily:
    """The family, as the registry hands it out.

    Observation: 8 positions (without x), 9 velocities; action: 6 torques.
    """
    return make_family("walker_params", "walker2d", observations=17, actions=6, forward=8)
