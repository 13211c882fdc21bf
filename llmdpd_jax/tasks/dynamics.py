"""Tasks that differ in their physics: the same robot heavier or lighter, stiffer or looser, on rough ground or on ice.

As in Rothfuss et al. 2019 (ProMP) and PEARL (Rakelly et al. 2019), whose hoppers and walkers have masses, inertias
and frictions of 1.5^u and dampings of 1.3^u times their own, u uniform in -3 to 3. There every body and joint has
factors of its own, some sixty numbers that no sentence would tell. Here a task has four: one of each kind, for all
bodies and joints alike. Friction is 1.5 times the robot's own at most: of hoppers, whose feet have a coefficient of 2
to begin with, an expert trained on the whole range did badly in eight tasks beyond twice (8 million steps of PPO).
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.environment import State, System, make_robot
from llmdpd_jax.tasks.experts import expert_behaviour, expert_file
from llmdpd_jax.tasks.family import Task, TaskFamily, TimeView
from llmdpd_jax.tasks.physics import PhysicsTask
from llmdpd_jax.tasks.wording import Quantity, as_wordings
from llmdpd_jax.tasks.wordings.dynamics import dynamics_wordings

FACTORS = ("mass", "inertia", "damping", "friction")
BASES = np.array([1.5, 1.5, 1.3, 1.5])
LOWEST, HIGHEST = np.array([-3.0, -3.0, -3.0, -3.0]), np.array([3.0, 3.0, 3.0, 1.0])  # powers of these
BACKEND = "generalized"  # `spring` gives every body of the hopper the same mass and no joint of its damping
HORIZON = 200
ALIVE, CONTROL_COST = 1.0, 1e-3
TRAIN_TASKS, TEST_TASKS = 40, 10
TASK_SEED = 2611


def draw(key: jax.Array) -> jax.Array:
    """Factors `[4]` in the order of FACTORS: 1.5^u, that of damping 1.3^u, u uniform between LOWEST and HIGHEST."""
    return BASES ** jax.random.uniform(key, (4,), minval=LOWEST, maxval=HIGHEST)


def scaled(system: System, factors: jax.Array) -> System:
    """The system with all masses, inertias, dampings of joints and frictions times these factors `[4]`.

    What motors add to a joint's inertia ("armature") stays as it is.
    """
    mass, inertia, damping, friction = factors
    body = system.link.inertia
    body = body.replace(mass=body.mass * mass, i=body.i * inertia)
    return system.replace(
        link=system.link.replace(inertia=body),
        dof=system.dof.replace(damping=system.dof.damping * damping),
        geom_friction=system.geom_friction * friction,
    )


def reward(before: State, after: State, action: jax.Array, factors: jax.Array, dt: jax.Array) -> jax.Array:
    """v + 1 - 0.001 |a|^2, where v is the torso's speed ahead over the step (m/s), of every step that it is upright."""
    del factors
    speed = (after.x.pos[0, 0] - before.x.pos[0, 0]) / dt
    return speed + ALIVE - CONTROL_COST * jnp.sum(action**2)


def make_env(robot: str, backend: str = BACKEND) -> PhysicsTask:
    """One of Brax's robots, which ends an episode where it falls, with its own observation and this reward.

    Raises `UserError` for another backend than BACKEND.
    """
    if backend != BACKEND:
        raise UserError(f"{robot} in the physics backend {backend!r} would not feel all factors; {BACKEND!r} does")
    return PhysicsTask(make_robot(robot, backend), draw, reward, scaled)


def make_tasks() -> tuple[Task, ...]:
    """40 train and 10 test tasks, factors of two decimals so that a description can state them exactly."""
    powers = np.random.default_rng(TASK_SEED).uniform(LOWEST, HIGHEST, (TRAIN_TASKS + TEST_TASKS, 4))
    names = [("train", i) for i in range(TRAIN_TASKS)] + [("test", i) for i in range(TEST_TASKS)]
    return tuple(
        Task(f"{split}-{i:02d}", split, dict(zip(FACTORS, map(float, factors), strict=True)))
        for (split, i), factors in zip(names, np.round(BASES**powers, 2), strict=True)
    )


def phrases(parameters: Mapping[str, float]) -> dict[str, str | Quantity]:
    """What the fields of the templates stand for, for one task: each factor by its first letter, and how far it is
    from 1 by that letter twice, whose sign says which word suits."""
    letters = {name[0]: parameters[name] for name in FACTORS}
    return {letter: Quantity(factor) for letter, factor in letters.items()} | {
        2 * letter: Quantity(factor - 1) for letter, factor in letters.items()
    }


def make_family(name: str, robot: str, observations: int, actions: int, forward: int) -> TaskFamily:
    """The family of one robot; `forward` is the index of its speed ahead in an observation."""
    return TaskFamily(
        name=name,
        horizon=HORIZON,
        observation_low=(-np.inf,) * observations,
        observation_high=(np.inf,) * observations,
        action_low=(-1.0,) * actions,
        action_high=(1.0,) * actions,
        parameter_names=FACTORS,
        make_env=functools.partial(make_env, robot),
        tasks=make_tasks,
        behaviour=functools.partial(expert_behaviour, name),
        wordings=as_wordings(dynamics_wordings()),
        phrases=phrases,
        reference_episodes=50,
        expert=expert_file(name),
        view=TimeView(observation=forward, label="speed of the torso (m/s)", target=None),
    )
