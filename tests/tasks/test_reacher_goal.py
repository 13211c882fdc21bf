"""reacher_goal: rewards by hand, an observation that hides the goal, a controller that gets there."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.data.collect import make_episode, returns_of
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks import reacher_goal
from llmdpd_jax.tasks.environment import point_on
from llmdpd_jax.tasks.family import QUALITIES, get_family

KEY = jax.random.key(0)


def arm(x, y, quarter_turns=0):
    """A pipeline state whose forearm begins at (x, y) and points along x, or is turned to the left."""
    half = quarter_turns * np.pi / 4
    position = jnp.array([[9.0, 9.0, 9.0], [x, y, 0.01]])
    rotation = jnp.array([[1.0, 0.0, 0.0, 0.0], [np.cos(half), 0.0, 0.0, np.sin(half)]])
    return SimpleNamespace(x=SimpleNamespace(pos=position, rot=rotation), q=jnp.zeros(4), qd=jnp.arange(4.0))


def test_a_point_on_a_link_turns_with_it():
    np.testing.assert_allclose(point_on(arm(0.1, 0.2), 1, (0.11, 0.0, 0.5)), [0.21, 0.2, 0.51], atol=1e-6)
    np.testing.assert_allclose(point_on(arm(0.1, 0.2, 1), 1, (0.11, 0.0, 0.5)), [0.1, 0.31, 0.51], atol=1e-6)


def test_rewards_by_hand():
    # The fingertip is 0.11 m from the elbow at (0.1, 0), straight up: at (0.1, 0.11), so 0.03 and 0.04 m off the goal.
    # The torques cost 0.1 (0.25 + 1).
    value = reacher_goal.reward(None, arm(0.1, 0.0, 1), jnp.array([0.5, -1.0]), jnp.array([0.07, 0.07]), 0.02)
    assert value == pytest.approx(-0.05 - 0.125, abs=1e-5)


def test_it_observes_the_arm_and_not_the_goal():
    np.testing.assert_allclose(reacher_goal.observe(arm(0.1, 0.0, 1)), [0.1, 0.11, 1, 1, 0, 0, 0, 1], atol=1e-6)
    env = reacher_goal.make_env()
    starts = jax.jit(jax.vmap(env.reset_task))(jnp.stack([KEY] * 2), jnp.array([[0.1, 0.0], [-0.1, 0.15]]))
    np.testing.assert_array_equal(starts.obs[0], starts.obs[1])
    # At rest the fingertip is where two links of 0.1 and 0.11 m with these angles end.
    tip, cosines, sines = np.split(np.array(starts.obs[0][:6]), 3)
    shoulder, elbow = np.arctan2(sines, cosines)
    both = shoulder + elbow
    np.testing.assert_allclose(tip[0], 0.1 * np.cos(shoulder) + 0.11 * np.cos(both), atol=1e-3)
    np.testing.assert_allclose(tip[1], 0.1 * np.sin(shoulder) + 0.11 * np.sin(both), atol=1e-3)


def test_tasks_are_fixed_distinct_and_in_reach():
    tasks = get_family("reacher_goal").tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [45, 10]
    goals = np.array([[task.parameters["goal_x"], task.parameters["goal_y"]] for task in tasks])
    assert len(np.unique(goals, axis=0)) == 55
    np.testing.assert_allclose(goals * 100, np.round(goals * 100), atol=1e-9)
    radii = np.hypot(*goals.T)
    assert radii.min() >= 0.02 and radii.max() <= 0.2
    drawn = jax.vmap(reacher_goal.draw)(jax.random.split(KEY, 4000))
    radii = jnp.linalg.norm(drawn, axis=-1)
    assert radii.min() >= 0.02 and radii.max() <= 0.2
    # Uniform over the area: a circle that holds half of it has half of the goals, and so has each side.
    assert jnp.mean(radii < np.sqrt((0.02**2 + 0.2**2) / 2)) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(jnp.mean(drawn > 0, axis=0), 0.5, atol=0.03)


# --- behaviour -------------------------------------------------------------------------------------------------------


def tip_of(shoulder, elbow):
    both = shoulder + elbow
    return np.array([0.1 * np.cos(shoulder) + 0.11 * np.cos(both), 0.1 * np.sin(shoulder) + 0.11 * np.sin(both)])


@pytest.mark.parametrize("elbow", [-0.3, 0.3])
def test_angles_put_the_fingertip_at_a_place(elbow):
    for place in np.random.default_rng(0).uniform(-0.14, 0.14, (20, 2)):
        shoulder, bend = reacher_goal.angles_at(jnp.array(place), jnp.array(elbow))
        np.testing.assert_allclose(tip_of(shoulder, bend), place, atol=1e-4)
        assert np.sign(bend) == np.sign(elbow)
    # Out of reach: straight towards it. Nearer than the elbow bends: folded.
    np.testing.assert_allclose(tip_of(*reacher_goal.angles_at(jnp.array([0.3, 0.3]), jnp.array(elbow))), 0.21 / 2**0.5)
    assert np.linalg.norm(tip_of(*reacher_goal.angles_at(jnp.array([0.0, 0.001]), jnp.array(elbow)))) < 0.0101


def test_the_controller_pulls_the_shorter_way_and_damps():
    def torques(shoulder, elbow, speeds, goal):
        cosines, sines = np.cos([shoulder, elbow]), np.sin([shoulder, elbow])
        observation = jnp.array([*tip_of(shoulder, elbow), *cosines, *sines, *speeds])
        return reacher_goal.torques_towards(jnp.array(goal), observation)

    goal = tip_of(0.3, 0.8)
    # 0.1 and -0.2 rad off; 0.2 and -0.1 rad/s are damped by 0.45 times as much.
    np.testing.assert_allclose(torques(0.2, 1.0, (0.2, -0.1), goal), [0.1 - 0.09, -0.2 + 0.045], atol=1e-4)
    # From 3.0 rad to -3.0 rad it is 0.283 rad onwards, not six back.
    np.testing.assert_allclose(torques(3.0, 0.8, (0.0, 0.0), tip_of(-3.0, 0.8)), [2 * np.pi - 6, 0.0], atol=1e-4)


def test_the_expert_arrives_and_worse_qualities_return_less():
    family = get_family("reacher_goal")
    goals = np.stack([family.parameter_array(task.parameters) for task in family.tasks()])
    seeds, progress = jax.random.bits(KEY, (len(goals), 4)), np.linspace(0.0, 1.0, 4)

    @jax.jit
    def play():
        per_task = jax.vmap(make_episode(family, *QUALITIES), in_axes=(0, 0, None, None))
        per_quality = jax.vmap(per_task, in_axes=(0, None, 0, None))
        return jax.lax.map(lambda which: per_quality(seeds, progress, goals, which), jnp.arange(len(QUALITIES)))

    each = play()
    played = {quality: jax.tree.map(lambda x, i=i: x[i], each) for i, quality in enumerate(QUALITIES)}
    off = np.linalg.norm(played["expert"].observations[:, :, -1, :2] - goals[:, None], axis=-1)
    assert off.mean() < 0.006 and off.max() < 0.015
    means = {quality: returns_of(rollout).mean() for quality, rollout in played.items()}
    assert means["random"] < means["replay"] < means["mixed"] < means["expert"]
    assert means["random"] < means["medium"] < means["mixed"]
    assert means["expert"] > -4.7 and means["random"] < -12
    assert not np.any(played["random"].terminations)


def test_the_log_of_a_learner_ends_as_the_expert():
    behaviour, goal = get_family("reacher_goal").behaviour, jnp.zeros(2)
    mixed, expert = (behaviour(quality).draw for quality in ("mixed", "expert"))
    for last, best in zip(jax.tree.leaves(mixed(KEY, 1.0, goal)), jax.tree.leaves(expert(KEY, 0.0, goal)), strict=True):
        np.testing.assert_array_equal(last, best)
    with pytest.raises(UserError, match="unknown quality 'best'"):
        behaviour("best")
