"""ant_dir and ant_goal: rewards by hand, and the frame in which experts see every ant as one that is to go ahead."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.data.collect import make_episode, returns_of
from llmdpd_jax.tasks import ant, ant_dir, ant_goal
from llmdpd_jax.tasks.family import get_family

KEY = jax.random.key(0)
ACTION = jnp.array([1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0])  # |a|^2 = 1.5


def at(x, y):
    """A pipeline state whose torso is there."""
    return SimpleNamespace(x=SimpleNamespace(pos=jnp.array([[x, y, 0.5], [9.0, 9.0, 9.0]])))


def test_ant_dir_rewards_by_hand():
    # 0.03 and 0.04 m in 0.05 s are 0.6 and 0.8 m/s; to the north-west that is (0.8 - 0.6) / sqrt(2). Torques cost 0.75.
    before, after = at(1.0, 2.0), at(1.03, 2.04)
    for degrees, along in {0: 0.6, 90: 0.8, 180: -0.6, 135: 0.2 / 2**0.5}.items():
        value = ant_dir.reward(before, after, ACTION, jnp.array([np.deg2rad(degrees)]), 0.05)
        assert value == pytest.approx(along - 0.75, abs=1e-4)


def test_ant_goal_rewards_by_hand():
    # 0.3 and 0.4 m off the goal, however it came there; torques cost 0.15.
    value = ant_goal.reward(None, at(1.3, -0.6), ACTION, jnp.array([1.0, -1.0]), 0.05)
    assert value == pytest.approx(-0.5 - 0.15, abs=1e-5)


def test_ant_dir_tasks_are_fixed_and_distinct():
    tasks = get_family("ant_dir").tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [45, 10]
    degrees = np.rad2deg([task.parameters["heading"] for task in tasks])
    np.testing.assert_allclose(degrees, np.round(degrees), atol=1e-9)
    assert len(set(np.round(degrees))) == 55 and degrees.min() >= 0 and degrees.max() < 360
    np.testing.assert_array_equal(np.histogram(degrees, 4, (0, 360))[0] > 5, True)
    drawn = jax.vmap(ant_dir.draw)(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(jnp.histogram(drawn, 4, (0, 2 * np.pi))[0] / 4000, 0.25, atol=0.03)


def test_ant_goal_tasks_are_fixed_distinct_and_within_the_disc():
    tasks = get_family("ant_goal").tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [45, 10]
    goals = np.array([[task.parameters["goal_x"], task.parameters["goal_y"]] for task in tasks])
    assert len(np.unique(goals, axis=0)) == 55 and np.hypot(*goals.T).max() <= 3
    np.testing.assert_allclose(goals * 100, np.round(goals * 100), atol=1e-9)
    drawn = jax.vmap(ant_goal.draw)(jax.random.split(KEY, 4000))
    radii = jnp.linalg.norm(drawn, axis=-1)
    # Uniform over the area: a circle that holds half of it has half of the goals, and so has each side.
    assert radii.max() <= 3 and jnp.mean(radii < 3 / 2**0.5) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(jnp.mean(drawn > 0, axis=0), 0.5, atol=0.03)


# --- the frame of experts --------------------------------------------------------------------------------------------


def turn(degrees):
    """The quaternion of a turn to the left about the vertical."""
    half = np.deg2rad(degrees) / 2
    return np.array([np.cos(half), 0.0, 0.0, np.sin(half)])


def product(a, b):
    """Of two quaternions: first b, then a."""
    w, v, u, t = a[0], a[1:], b[0], b[1:]
    return np.array([w * u - v @ t, *(w * t + u * v + np.cross(v, t))])


def turned(vector, degrees):
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ vector


def toward(degrees):
    return jnp.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])


def body(rotation, velocity, spin, angles, speeds):
    return jnp.array([0.5, *rotation, *angles, *velocity, *spin, *speeds])


def crouching():
    """Angles of hip and ankle of four legs, all different; the ankles of the second and third bend downwards if < 0."""
    return np.array([0.1, 1.1, 0.2, -1.2, 0.3, -1.3, 0.4, 1.4])


def test_what_an_expert_sees_by_hand():
    """The ant faces north (its y axis west), leans nowhere, and goes north-east at (1, 2, 3) m/s; it is to go west."""
    state = body(turn(90), [1.0, 2.0, 3.0], [0.6, 0.7, 0.8], crouching(), 10 * crouching())
    up, direction, velocity, spin, angles, speeds = np.split(ant.towards(toward(180), state)[1:], [3, 6, 9, 12, 20])
    np.testing.assert_allclose(up, [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(direction, [1, 0, 0], atol=1e-6)  # its y axis points there, so its legs count from that
    np.testing.assert_allclose(velocity, [-1, -2, 3], atol=1e-6)  # 1 back from the west and 2 to the right of it
    np.testing.assert_allclose(spin, [0.7, -0.6, 0.8], atol=1e-6)
    np.testing.assert_allclose(angles, [0.2, 1.2, 0.3, 1.3, 0.4, 1.4, 0.1, 1.1], atol=1e-6)
    np.testing.assert_allclose(speeds, 10 * angles, rtol=1e-6)


def test_torques_go_back_to_the_legs_they_are_for():
    own = jnp.array([0.2, 0.12, 0.3, 0.13, 0.4, 0.14, 0.1, 0.11])  # legs 2, 3, 4, 1, which the same ant shows
    state = body(turn(90), np.zeros(3), np.zeros(3), crouching(), np.zeros(8))
    # Brax's motors: leg 4, 1, 2, 3; to bend the second's and third's ankle downwards is to turn it backwards.
    expected = [0.4, 0.14, 0.1, 0.11, 0.2, -0.12, 0.3, -0.13]
    np.testing.assert_allclose(ant.act_towards(toward(180), state, own), expected, atol=1e-6)


@pytest.mark.parametrize("heading", [0.0, 44.0, 46.0, 170.0, -100.0])
def test_an_ant_turned_with_its_direction_sees_the_same(heading):
    lean = np.array([0.9, 0.3, -0.2, 0.1]) / np.linalg.norm([0.9, 0.3, -0.2, 0.1])
    velocity, spin = np.array([1.0, 2.0, 3.0]), np.array([0.6, 0.7, 0.8])
    seen = ant.towards(toward(heading), body(lean, velocity, spin, crouching(), crouching()))
    assert abs(seen[5]) <= abs(seen[4]) + 1e-6 and seen[4] > 0  # within 45 degrees of ahead
    for degrees in (10.0, 90.0, 200.0, 300.0):
        other = body(product(turn(degrees), lean), turned(velocity, degrees), spin, crouching(), crouching())
        np.testing.assert_allclose(ant.towards(toward(heading + degrees), other), seen, atol=1e-5)
        # The same quarter of the ant is in front, so that the same torques are for the same legs.
        torques = [
            ant.act_towards(toward(h), b, ACTION) for h, b in ((heading, seen_from(lean)), (heading + degrees, other))
        ]
        np.testing.assert_allclose(*torques, atol=1e-6)


def seen_from(rotation):
    return body(rotation, np.zeros(3), np.zeros(3), crouching(), crouching())


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_an_ant_whose_other_legs_are_in_front_sees_the_same(quarters):
    """Turned by quarter turns where it stands, each leg bent as the one was that stood there, it looks as it did."""

    def neighbours(values):  # leg j now stands where leg j + quarters stood; the second and third are mirrored
        signs = np.stack([np.ones(4), [1, -1, -1, 1]], 1)
        return (np.roll(values.reshape(4, 2) * signs, -quarters, 0) * signs).ravel()

    lean = np.array([0.9, 0.3, -0.2, 0.1]) / np.linalg.norm([0.9, 0.3, -0.2, 0.1])
    velocity, spin = np.array([1.0, 2.0, 3.0]), np.array([0.6, 0.7, 0.8])
    first = body(lean, velocity, spin, crouching(), 2 * crouching())
    second = body(
        product(lean, turn(90 * quarters)),
        velocity,
        turned(spin, -90 * quarters),
        neighbours(crouching()),
        neighbours(2 * crouching()),
    )
    np.testing.assert_allclose(ant.towards(toward(75), second), ant.towards(toward(75), first), atol=1e-5)


def test_the_way_to_a_goal_is_told_with_its_length():
    state = jnp.concatenate([jnp.array([1.0, -2.0]), body(turn(0), np.ones(3), np.ones(3), crouching(), crouching())])
    seen = ant_goal.FRAME.inputs(state, jnp.array([1.3, -1.6]))  # 0.3 and 0.4 m away
    assert seen[-1] == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(seen[:-1], ant.towards(jnp.array([0.6, 0.8]), state[2:]), atol=1e-6)
    torques = ant_goal.FRAME.action(state, jnp.array([1.3, -1.6]), ACTION)
    np.testing.assert_allclose(torques, ant.act_towards(jnp.array([0.6, 0.8]), state[2:], ACTION), atol=1e-6)
    assert np.isfinite(ant_goal.FRAME.inputs(state, state[:2])).all()  # at the goal itself


# --- Brax's ant ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parameters_change_the_reward_alone_and_torques_move_the_legs_that_are_seen():
    env, headings = ant_dir.make_env(), np.deg2rad([[10.0], [100.0], [190.0], [280.0]])
    start = jax.jit(jax.vmap(env.reset_task, in_axes=(None, 0)))(KEY, headings)
    step = jax.jit(jax.vmap(env.step))
    after = step(start, jnp.tile(ACTION, (4, 1)))
    for states in (start, after):
        np.testing.assert_array_equal(states.obs, np.tile(states.obs[0], (4, 1)))
    assert len(np.unique(after.reward)) == 4 and np.all(after.done == 0)
    # Each torque, one after the other: in every direction it speeds up the joint that is seen in its place.
    see, act = jax.vmap(ant_dir.FRAME.inputs), jax.vmap(ant_dir.FRAME.action, in_axes=(0, 0, None))
    for joint in range(8):
        moved = step(start, act(start.obs, headings, 0.5 * jax.nn.one_hot(joint, 8)))
        still = step(start, jnp.zeros((4, 8)))
        gained = (see(moved.obs, headings) - see(still.obs, headings))[:, -8:]
        np.testing.assert_array_equal(np.argmax(gained, axis=1), joint)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ant_dir", "ant_goal"])
def test_experts_walk_their_way(name):
    """Of every heading, and of every goal: one that knew its way in some of them only would not do."""
    family = get_family(name)
    tasks = np.stack([family.parameter_array(task.parameters) for task in family.tasks()])
    each = jax.vmap(make_episode(family, "expert", "random"), in_axes=(0, None, 0, None))
    play = jax.jit(jax.vmap(each, in_axes=(None, None, None, 0)))  # compiled once for both
    played = play(jax.random.bits(KEY, (len(tasks),)), 0.0, tasks, jnp.arange(2))
    expert, random = (jax.tree.map(lambda x, i=i: x[i], played) for i in range(2))
    assert np.min(returns_of(expert) - returns_of(random)) > 0
    if name == "ant_dir":
        along = expert.rewards + 0.5 * np.sum(expert.actions**2, -1)  # m/s
        assert along.mean() > 4.5 and np.mean(along.mean(-1) > 2) > 0.9
    else:
        off = np.linalg.norm(expert.observations[:, 100:, :2] - tasks[:, None], axis=-1)
        assert off.mean() < 0.05 and np.mean(off.mean(-1) < 0.1) > 0.9
