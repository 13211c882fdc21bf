"""hopper_params: a hopper that has to get ahead, whose masses, inertias, dampings and friction only the prompt tells.

Rewards, ends and tasks are in `dynamics.py`. Physics: Brax, `generalized`, steps of 0.008 s; an episode ends where the
torso is lower than 0.7 m or leans by more than 0.2 rad.
"""

import functools

from llmdpd_jax.tasks.dynamics import make_family
from llmdpd_jax.tasks.family import TaskFamily


@functools.cache
def hopper_params() -> TaskFamily:
    """The family, as the registry hands it out.

    Observation: 5 positions (without x), 6 velocities; action: 3 torques.
    """
    return make_family("hopper_params", "hopper", observations=11, actions=3, forward=5)
