"""Robots of Brax as task families: rewards by hand, one compiled call for many tasks, dynamics that differ."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.tasks import cheetah_dir, cheetah_vel
from llmdpd_jax.tasks.environment import State
from llmdpd_jax.tasks.family import get_family
from llmdpd_jax.tasks.physics import PhysicsTask

KEY = jax.random.key(0)


class Slider:
    """In the place of a Brax environment: a mass that an action pushes along a line for half a second."""

    dt, observation_size, action_size, backend = 0.5, 2, 1, "slider"
    sys = SimpleNamespace(mass=2.0)

    def reset(self, key):
        del key
        return State(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), jnp.zeros(()), {"own": jnp.zeros(())}, {})

    def step(self, state, action):
        position, speed = state.pipeline_state
        speed = speed + action[0] / self.sys.mass * self.dt
        now = jnp.array([position + speed * self.dt, speed])
        state.metrics.update(own=speed)
        return state.replace(pipeline_state=now, obs=now, reward=100.0, done=(now[0] > 1).astype(float))


def slide(dynamics=None, observe=None):
    return PhysicsTask(
        Slider(),
        lambda key: jax.random.uniform(key, (1,)),
        lambda before, after, action, parameters, dt: (after[0] - before[0]) / dt - parameters[0] * action[0],
        dynamics,
        observe,
    )


def test_the_reward_is_the_tasks_and_actions_are_clipped():
    env = slide()
    state = env.step(env.reset_task(KEY, jnp.array([3.0])), jnp.array([8.0]))
    # Pushed by 1 for half a second: 0.25 m/s, so 0.125 m further.
    np.testing.assert_allclose(state.obs, [0.125, 0.25])
    assert state.reward == pytest.approx(0.25 - 3.0 * 1.0) and state.done == 0
    np.testing.assert_array_equal(state.info["parameters"], [3.0])
    for _ in range(2):
        state = env.step(state, jnp.array([1.0]))
    assert state.obs[0] == pytest.approx(0.125 * (1 + 2 + 3)) and state.done == 0
    assert env.step(state, jnp.array([1.0])).done == 1  # ends are Brax's


def test_a_step_leaves_the_state_before_it_as_it_was():
    env = slide()
    state = env.reset_task(KEY, jnp.array([1.0]))
    before = jax.tree.map(np.array, state)
    env.step(state, jnp.array([1.0]))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, state), before)


def test_dynamics_follow_the_parameters():
    env = slide(lambda system, parameters: SimpleNamespace(mass=system.mass * parameters[0]))
    for factor in (1.0, 4.0):
        state = env.step(env.reset_task(KEY, jnp.array([factor])), jnp.array([1.0]))
        assert state.obs[1] == pytest.approx(0.25 / factor)
    assert env.brax_env.sys.mass == 2.0


def test_an_observation_of_the_familys_own_replaces_brax_s():
    env = slide(observe=lambda state: state[1:] * 10)
    state = env.reset_task(KEY, jnp.array([1.0]))
    np.testing.assert_array_equal(state.obs, [0.0])
    np.testing.assert_allclose(env.step(state, jnp.array([1.0])).obs, [2.5])
    assert (env.observation_size, slide().observation_size) == (1, 2)


def test_reset_draws_tasks():
    drawn = jax.vmap(slide().reset)(jax.random.split(KEY, 500)).info["parameters"]
    assert drawn.min() < 0.02 and drawn.max() > 0.98


# --- cheetah_vel -----------------------------------------------------------------------------------------------------


def at(x):
    """A pipeline state whose torso is at x."""
    return SimpleNamespace(x=SimpleNamespace(pos=jnp.array([[x, 0.0, 0.3], [9.0, 9.0, 9.0]])))


def test_cheetah_vel_rewards_by_hand():
    action = jnp.array([1.0, -0.5, 0.0, 0.0, 0.0, 0.5])
    # 0.1 m in 0.05 s are 2 m/s, 0.5 m/s too fast; the action costs 0.05 (1 + 0.25 + 0.25).
    value = cheetah_vel.reward(at(1.0), at(1.1), action, jnp.array([1.5]), 0.05)
    assert value == pytest.approx(-0.5 - 0.075, abs=1e-5)
    assert cheetah_vel.reward(at(1.0), at(0.9), action, jnp.array([1.5]), 0.05) == pytest.approx(-3.575, abs=1e-5)


def test_cheetah_vel_tasks_are_fixed_and_distinct():
    tasks = get_family("cheetah_vel").tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [45, 10]
    speeds = [task.parameters["speed"] for task in tasks]
    assert len(set(speeds)) == 55 and min(speeds) > 0 and max(speeds) <= 3
    assert (tasks[0].name, tasks[0].parameters) == ("train-00", {"speed": 1.69})


# --- cheetah_dir -----------------------------------------------------------------------------------------------------


def test_cheetah_dir_rewards_by_hand():
    action = jnp.array([1.0, -0.5, 0.0, 0.0, 0.0, 0.5])
    # 0.1 m in 0.05 s are 2 m/s, ahead or the wrong way; the action costs 0.05 (1 + 0.25 + 0.25).
    for direction in (1.0, -1.0):
        value = cheetah_dir.reward(at(1.0), at(1.1), action, jnp.array([direction]), 0.05)
        assert value == pytest.approx(2 * direction - 0.075, abs=1e-5)


def test_cheetah_dir_has_both_directions_in_both_splits_and_draws_no_other():
    tasks = get_family("cheetah_dir").tasks()
    assert [(task.split, task.parameters["direction"]) for task in tasks] == [
        ("train", 1.0),
        ("train", -1.0),
        ("test", 1.0),
        ("test", -1.0),
    ]
    drawn = jax.vmap(cheetah_dir.draw)(jax.random.split(KEY, 500))
    assert set(np.unique(drawn)) == {-1.0, 1.0} and abs(drawn.mean()) < 0.15


# --- robots ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ant_dir", "ant_goal", "cheetah_vel", "hopper_params", "reacher_goal"])
def test_a_batch_of_robots_equals_single_ones(name):
    """Step by step from the same states: over many steps, contacts let what was rounded grow."""
    family = get_family(name)
    env = family.make_env()
    assert (env.observation_size, env.action_size) == (family.observation_size, family.action_size)
    tasks = np.stack([family.parameter_array(task.parameters) for task in family.tasks()[:45]])
    keys = jax.random.split(KEY, 45)
    state, single_start = jax.jit(jax.vmap(env.reset_task))(keys, tasks), jax.jit(env.reset_task)
    for i in range(45):
        np.testing.assert_allclose(state.obs[i], single_start(keys[i], tasks[i]).obs, atol=1e-6)
    many, single = jax.jit(jax.vmap(env.step)), jax.jit(env.step)
    for t in range(10):
        actions = jax.random.uniform(jax.random.key(t), (45, env.action_size), minval=-1.2, maxval=1.2)
        before, state = state, many(state, actions)
        for i in range(45):
            alone = single(jax.tree.map(lambda x, i=i: x[i], before), actions[i])
            np.testing.assert_allclose(state.obs[i], alone.obs, atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(state.reward[i], alone.reward, atol=1e-5, rtol=1e-5)
    assert len(np.unique(state.reward)) == 45
