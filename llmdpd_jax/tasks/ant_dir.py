"""ant_dir: an ant that has to walk in a direction that only the prompt tells.

The usual benchmark of meta reinforcement learning, with all directions and 200 steps as in PEARL (Rakelly et al. 2019):
reward = (cos h, sin h) . v - 0.5 |a|^2, where v is the torso's velocity on the plane over the step (m/s), h the heading
(rad, counterclockwise from the x axis) and a the eight torques. PEARL adds 1 for each step that the ant survives, and
ends an episode where its height leaves 0.2 to 1 m. Here nothing ends an episode but its length, so that returns compare
how far an ant got and not how long it was allowed to; the bonus would be 200 for every policy and is left out. So is
the cost of contacts, which Brax does not have. Physics: Brax, `spring`, steps of 0.05 s.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.tasks.ant import BODY, act_towards, make_ant, towards
from llmdpd_jax.tasks.environment import State
from llmdpd_jax.tasks.experts import expert_behaviour, expert_file
from llmdpd_jax.tasks.family import Frame, PlaneView, Task, TaskFamily
from llmdpd_jax.tasks.physics import BACKEND, PhysicsTask
from llmdpd_jax.tasks.wording import Quantity, as_wordings
from llmdpd_jax.tasks.wordings.direction import direction_phrases, direction_wordings

NAME = "ant_dir"
HORIZON = 200
CONTROL_COST = 0.5
TRAIN_TASKS, TEST_TASKS = 45, 10
TASK_SEED = 2611


def draw(key: jax.Array) -> jax.Array:
    """A heading `[1]`, uniform over a full turn."""
    return jax.random.uniform(key, (1,), maxval=2 * jnp.pi)


def direction(parameters: jax.Array) -> jax.Array:
    """The unit vector `[2]` of the heading."""
    return jnp.array([jnp.cos(parameters[0]), jnp.sin(parameters[0])])


def reward(before: State, after: State, action: jax.Array, parameters: jax.Array, dt: jax.Array) -> jax.Array:
    """(cos h, sin h) . v - 0.5 |a|^2."""
    velocity = (after.x.pos[0, :2] - before.x.pos[0, :2]) / dt
    return velocity @ direction(parameters) - CONTROL_COST * jnp.sum(action**2)


def make_env(backend: str = BACKEND) -> PhysicsTask:
    """Brax's ant under this reward. Observation: 13 positions (without x and y), 14 velocities; action: 8 torques."""
    return PhysicsTask(make_ant(backend), draw, reward)


def make_tasks() -> tuple[Task, ...]:
    """45 train and 10 test tasks of distinct headings of whole degrees, which a description can state exactly."""
    degrees = np.random.default_rng(TASK_SEED).choice(360, TRAIN_TASKS + TEST_TASKS, replace=False)
    names = [("train", i) for i in range(TRAIN_TASKS)] + [("test", i) for i in range(TEST_TASKS)]
    return tuple(
        Task(f"{split}-{i:02d}", split, {"heading": float(np.deg2rad(angle))})
        for (split, i), angle in zip(names, degrees, strict=True)
    )


FRAME = Frame(
    inputs=lambda observation, parameters: towards(direction(parameters), observation),
    action=lambda observation, parameters, action: act_towards(direction(parameters), observation, action),
)


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task."""
    return direction_phrases(parameters["heading"])


@functools.cache
def ant_dir() -> TaskFamily:
    """The family, as the registry hands it out."""
    return TaskFamily(
        name=NAME,
        horizon=HORIZON,
        observation_low=(-np.inf,) * BODY,
        observation_high=(np.inf,) * BODY,
        action_low=(-1.0,) * 8,
        action_high=(1.0,) * 8,
        parameter_names=("heading",),
        make_env=make_env,
        tasks=make_tasks,
        behaviour=functools.partial(expert_behaviour, NAME, frame=FRAME),
        wordings=as_wordings(direction_wordings()),
        phrases=phrases,
        reference_episodes=20,
        view=PlaneView(position=(13, 14), goal=None),  # its velocity (m/s); its place is not observed
        expert=expert_file(NAME),
        frame=FRAME,
    )
