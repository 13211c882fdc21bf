"""hopper_params and walker_params: factors by hand, rewards by hand, and physics that differ by the factors."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.tasks import dynamics
from llmdpd_jax.tasks.dynamics import FACTORS
from llmdpd_jax.tasks.family import get_family

KEY = jax.random.key(0)
USUAL = jnp.ones(4)


def only(name, factor):
    """All as usual but for one factor."""
    return USUAL.at[FACTORS.index(name)].set(factor)


def at(x):
    """A pipeline state whose torso is at x."""
    return SimpleNamespace(x=SimpleNamespace(pos=jnp.array([[x, 0.0, 1.2], [9.0, 9.0, 9.0]])))


def test_rewards_by_hand():
    # 0.012 m in 0.008 s are 1.5 m/s; upright gives 1; the action costs 0.001 (1 + 0.25 + 0).
    value = dynamics.reward(at(1.0), at(1.012), jnp.array([1.0, -0.5, 0.0]), USUAL, 0.008)
    assert value == pytest.approx(1.5 + 1 - 0.00125, abs=1e-4)


def test_tasks_are_fixed_distinct_and_in_range():
    tasks = get_family("hopper_params").tasks()
    assert tasks == get_family("walker_params").tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [40, 10]
    factors = np.array([[task.parameters[name] for name in FACTORS] for task in tasks])
    assert len(np.unique(factors, axis=0)) == 50
    np.testing.assert_allclose(factors * 100, np.round(factors * 100), atol=1e-9)
    smallest, largest = np.array([0.296, 0.296, 0.455, 0.296]), np.array([3.375, 3.375, 2.197, 1.5])
    assert np.all(factors >= smallest - 0.005) and np.all(factors <= largest + 0.005)
    drawn = jax.vmap(dynamics.draw)(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(drawn.min(0), smallest, rtol=0.01)
    np.testing.assert_allclose(drawn.max(0), largest, rtol=0.01)
    np.testing.assert_allclose(jnp.median(drawn, 0)[:3], 1.0, atol=0.06)  # as often halved as doubled


def test_all_bodies_and_joints_are_scaled():
    system = get_family("hopper_params").make_env().brax_env.sys
    found = dynamics.scaled(system, jnp.array([2.0, 3.0, 5.0, 7.0]))
    np.testing.assert_allclose(found.link.inertia.mass, 2 * system.link.inertia.mass)
    np.testing.assert_allclose(found.link.inertia.i, 3 * system.link.inertia.i)
    np.testing.assert_allclose(found.dof.damping, 5 * system.dof.damping)
    np.testing.assert_allclose(found.geom_friction, 7 * system.geom_friction)
    assert system.dof.damping.max() > 0 and system.link.inertia.mass.min() > 0


@pytest.mark.slow
def test_each_factor_changes_the_physics():
    """From the same start under the same torques, beside a usual hopper, all go their own ways."""
    env = get_family("hopper_params").make_env()
    tasks = jnp.stack([USUAL, only("mass", 3.0), only("inertia", 3.0), only("damping", 2.0), only("friction", 0.02)])
    start = jax.jit(jax.vmap(env.reset_task, in_axes=(None, 0)))(KEY, tasks)
    np.testing.assert_allclose(start.obs, jnp.tile(start.obs[0], (5, 1)), atol=1e-6)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, None)))
    state = start
    for _ in range(40):
        state = step(state, jnp.array([0.3, -0.4, 0.5]))
    assert len(np.unique(np.round(state.obs, 3), axis=0)) == 5


@pytest.mark.slow
def test_a_heavier_hopper_is_thrown_less_high_by_the_same_torques():
    env = get_family("hopper_params").make_env()
    masses = jnp.array([0.5, 1.0, 2.0])
    tasks = jax.vmap(lambda mass: only("mass", mass))(masses)
    state = jax.jit(jax.vmap(env.reset_task, in_axes=(None, 0)))(KEY, tasks)
    step, heights = jax.jit(jax.vmap(env.step, in_axes=(0, None))), []
    for _ in range(40):
        state = step(state, jnp.array([1.0, 1.0, 1.0]))
        heights.append(state.pipeline_state.x.pos[:, 0, 2])
    highest = np.max(heights, axis=0)
    assert highest[0] > highest[1] > highest[2], highest


@pytest.mark.slow
def test_an_episode_ends_where_the_robot_falls():
    env = get_family("walker_params").make_env()
    state = jax.jit(env.reset_task)(KEY, USUAL)
    step, ends = jax.jit(env.step), []
    for _ in range(150):
        state = step(state, jnp.array([1.0, 1.0, -1.0, 1.0, 1.0, -1.0]))
        ends.append((bool(state.done), float(state.obs[0]), float(state.obs[1])))
    fell = next(i for i, (done, _, _) in enumerate(ends) if done)
    for done, height, lean in ends[: fell + 1]:
        assert done == (not (0.8 < height < 2.0 and -1.0 < lean < 1.0))
