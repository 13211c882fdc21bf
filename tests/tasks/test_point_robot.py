"""The environment by hand arithmetic, its tasks and its behaviour policies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.wrappers.training import EpisodeWrapper, VmapWrapper

from llmdpd_jax.data.collect import make_episode
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.family import QUALITIES
from llmdpd_jax.tasks.point_robot import PointRobot, point_robot

KEY = jax.random.key(0)


def test_moves_and_rewards_by_hand():
    env = PointRobot()
    state = env.reset_task(KEY, jnp.array([0.3, -0.4]))
    np.testing.assert_array_equal(state.obs, [0.0, 0.0])
    state = env.step(state, jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(state.obs, [0.05, -0.1], atol=1e-7)
    np.testing.assert_allclose(state.reward, -np.hypot(0.25, 0.3), rtol=1e-6)  # measured after the move
    state = env.step(state, jnp.array([7.0, -3.0]))  # clipped to (1, -1)
    np.testing.assert_allclose(state.obs, [0.15, -0.2], atol=1e-7)
    np.testing.assert_allclose(state.reward, -0.25, rtol=1e-6)
    assert state.done == 0


def test_reset_draws_goals_over_the_whole_square():
    goals = jax.vmap(PointRobot().reset)(jax.random.split(KEY, 4000)).info["parameters"]
    assert goals.min() < -0.99 and goals.max() > 0.99 and np.abs(goals).max() <= 1
    np.testing.assert_allclose(goals.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(goals.std(0), 1 / np.sqrt(3), atol=0.02)


def test_a_compiled_batch_of_tasks_equals_single_environments():
    env = PointRobot()
    goals = jax.random.uniform(KEY, (5, 2), minval=-1, maxval=1)
    actions = jax.random.uniform(jax.random.key(1), (5, 2), minval=-2, maxval=2)
    batch = jax.vmap(env.reset_task)(jax.random.split(KEY, 5), goals)
    step = jax.jit(jax.vmap(env.step))
    batch = step(step(batch, actions), -0.3 * actions)
    for i in range(5):
        single = env.reset_task(KEY, goals[i])
        single = env.step(env.step(single, actions[i]), -0.3 * actions[i])
        np.testing.assert_allclose(batch.obs[i], single.obs, atol=1e-6)
        np.testing.assert_allclose(batch.reward[i], single.reward, atol=1e-6)


def test_brax_wrappers_add_the_time_limit():
    env = VmapWrapper(EpisodeWrapper(PointRobot(), episode_length=20, action_repeat=1), batch_size=3)
    step = jax.jit(env.step)
    state = jax.jit(env.reset)(KEY)
    for _ in range(19):
        state = step(state, jnp.zeros((3, 2)))
    assert not state.done.any()
    state = step(state, jnp.zeros((3, 2)))
    assert state.done.all() and state.info["truncation"].all()


def test_tasks_are_fixed_distinct_and_exact_in_two_decimals():
    tasks = point_robot().tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [45, 15]
    goals = np.array([list(task.parameters.values()) for task in tasks])
    assert len({tuple(goal) for goal in goals}) == len({task.name for task in tasks}) == 60
    assert np.abs(goals).max() <= 1
    np.testing.assert_array_equal(goals, np.round(goals, 2))
    assert tasks[1].name == "train-01" and tasks[1].parameters == {"goal_x": 0.03, "goal_y": 0.76}
    np.testing.assert_array_equal(
        point_robot().parameter_array(tasks[1].parameters), np.array([0.03, 0.76], np.float32)
    )


EPISODES = 100


@functools.cache
def compiled(quality):
    episode = make_episode(point_robot(), quality)
    return jax.jit(jax.vmap(jax.vmap(episode, (0, 0, None)), (0, None, 0)))


def returns(quality, progress=None):
    """Returns `[60, EPISODES]` of a behaviour policy on all tasks."""
    goals = np.stack([point_robot().parameter_array(task.parameters) for task in point_robot().tasks()])
    seeds = np.arange(60 * EPISODES, dtype=np.uint32).reshape(60, EPISODES)
    progress = np.linspace(0, 1, EPISODES) if progress is None else np.full(EPISODES, progress)
    return np.asarray(compiled(quality)(seeds, progress.astype(np.float32), goals).rewards.sum(-1))


def test_expert_goes_straight_to_the_goal():
    found = returns("expert")[:, 0]
    for task, value in zip(point_robot().tasks(), found, strict=True):
        goal = np.array([task.parameters["goal_x"], task.parameters["goal_y"]])
        position, expected = np.zeros(2), 0.0
        for _ in range(20):
            position += np.clip(goal - position, -0.1, 0.1)
            expected -= np.linalg.norm(goal - position)
        np.testing.assert_allclose(value, expected, atol=1e-4)


def test_qualities_score_as_their_names_say():
    random, expert = (returns(q).mean(1) for q in ("random", "expert"))
    medium, mixed = (100 * (returns(q) - random[:, None]) / (expert - random)[:, None] for q in ("medium", "mixed"))
    assert 25 < medium.mean() < 45
    # Mediocre by more than noise: whole episodes go wrong, so their scores differ widely within a task.
    assert np.median(medium.std(1)) > 15
    assert 40 < mixed.mean() < 60
    parts = mixed.reshape(60, 5, -1).mean((0, 2))
    assert np.all(np.diff(parts) > 5) and parts[0] < 20 and parts[-1] > 80


def test_mixed_begins_random_and_ends_expert():
    np.testing.assert_allclose(returns("mixed", 0.0), returns("random"), atol=1e-4)
    np.testing.assert_allclose(returns("mixed", 1.0), returns("expert"), atol=1e-4)


def test_replay_is_the_first_half_of_mixed():
    for progress in (0.0, 0.4, 1.0):
        np.testing.assert_array_equal(returns("replay", progress), returns("mixed", progress / 2))


def test_unknown_quality_names_the_known_ones():
    with pytest.raises(UserError, match=f"'best'.*{', '.join(QUALITIES)}"):
        point_robot().behaviour("best")
