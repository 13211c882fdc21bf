"""maze_gaps by hand: its walls, the way through them, its tasks, behaviour policies and wordings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.data.collect import returns_of, roll_out
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks import maze_gaps as module
from llmdpd_jax.tasks.maze_gaps import HALF_GAP, HORIZON, MazeGaps, maze_gaps

KEY = jax.random.key(0)
TASK = jnp.array([0.5, -1.0, 2.0, 1.0])  # left gap, right gap, goal


def standing(x, y, velocity=(0.0, 0.0), task=TASK):
    state = MazeGaps().reset_task(KEY, task)
    return state.replace(obs=jnp.array([x, y, *velocity]))


@pytest.mark.parametrize(
    "place, blocked",
    [
        ((-1.0, 0.5), False),  # in the middle of the left gap
        ((-1.0, 0.69), False),  # 0.3 m of gap less 0.1 m of point
        ((-1.0, 0.71), True),
        ((-1.24, 0.0), True),  # the wall is 0.15 m to each side, the point 0.1 m
        ((-1.26, 0.0), False),
        ((1.0, 0.5), True),  # the right wall's gap is elsewhere
        ((1.0, -1.0), False),
        ((2.89, 1.89), False),
        ((2.91, 0.0), True),  # the room's own walls
        ((0.0, -1.91), True),
    ],
)
def test_walls_by_hand(place, blocked):
    assert bool(module.is_blocked(TASK[:2], jnp.array(place))) is blocked


def test_moves_and_rewards_by_hand():
    env = MazeGaps()
    state = env.step(standing(-2.0, 0.5), jnp.array([1.0, -0.5]))
    np.testing.assert_allclose(state.obs, [-1.84, 0.42, 0.8, -0.4], atol=1e-6)
    assert state.reward == pytest.approx(np.exp(-np.hypot(3.84, 0.58)), rel=1e-5)
    # Against the left wall at y = 0: x stays and loses its velocity, y goes on.
    state = env.step(standing(-1.3, 0.0, velocity=(1.0, 1.0)), jnp.array([0.5, 0.0]))
    np.testing.assert_allclose(state.obs, [-1.3, 0.12, 0.0, 0.6], atol=1e-6)
    assert state.done == 0


def test_no_push_leads_through_a_wall():
    def walk(key, task):
        state = MazeGaps().reset_task(key, task)

        def step(state, key):
            # Far more to the right than anywhere else: it leans on the walls all the time.
            push = jax.random.uniform(key, (2,), minval=jnp.array([0.0, -1.0]), maxval=jnp.array([3.0, 1.0]))
            after = MazeGaps().step(state, push)
            return after, (module.is_blocked(task[:2], after.obs[:2]), state.obs[:2], after.obs[:2])

        return jax.lax.scan(step, state, jax.random.split(key, 200))[1]

    tasks = jax.random.uniform(KEY, (60, 4), minval=module.LOW, maxval=module.HIGH)
    blocked, before, after = jax.jit(jax.vmap(walk))(jax.random.split(KEY, 60), tasks)
    assert not blocked.any()
    for wall, x in enumerate(module.WALLS):
        crosses = (before[..., 0] < x) & (after[..., 0] >= x)
        assert crosses.sum() > 20
        off = np.abs(after[..., 1] - np.asarray(tasks)[:, None, wall])[crosses]
        assert off.max() < HALF_GAP


def test_the_way_by_hand():
    def heads_for(x, y):
        return pytest.approx(module.waypoint(TASK, jnp.array([x, y])).tolist(), abs=1e-6)

    assert heads_for(-2.0, -1.0) == [-1.35, 0.5]  # to in front of the left gap
    assert heads_for(-1.4, 0.4) == [-0.3, 0.5]  # straight ahead: through it
    assert heads_for(-1.1, 0.6) == [-0.3, 0.5]
    assert heads_for(0.0, 1.0) == [0.65, -1.0]
    assert heads_for(0.7, -1.1) == [1.7, -1.0]
    assert heads_for(1.3, -1.1) == [2.0, 1.0]  # nothing is left in the way


def test_tasks_are_mazes_of_their_own():
    tasks = maze_gaps().tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [60, 15]
    values = np.array([list(task.parameters.values()) for task in tasks])
    assert len({tuple(row[:2]) for row in values}) == 75 and np.array_equal(values, np.round(values, 2))
    assert (values >= np.asarray(module.LOW) - 0.005).all() and (values <= np.asarray(module.HIGH) + 0.005).all()
    for row in values:
        assert not module.is_blocked(jnp.array(row[:2]), jnp.array(row[2:]))


EPISODES = 40


@functools.cache
def played(quality):
    parameters = np.stack([maze_gaps().parameter_array(task.parameters) for task in maze_gaps().tasks()])
    seeds = jax.random.bits(jax.random.key(1), (len(parameters), EPISODES))
    return jax.device_get(jax.jit(lambda: roll_out(maze_gaps(), quality, seeds, parameters))()), parameters


def test_the_expert_arrives_and_stays():
    rollout, parameters = played("expert")
    distance = np.linalg.norm(rollout.observations[..., :2] - parameters[:, None, None, 2:], axis=-1)
    assert distance.shape == (75, EPISODES, HORIZON + 1) and distance[:, :, -1].max() < 0.01
    assert (distance < 0.3).argmax(-1).max() < 32


def test_qualities_score_as_their_names_say():
    qualities = "random", "expert", "medium", "mixed"
    random, expert, medium, mixed = (np.asarray(returns_of(played(quality)[0])) for quality in qualities)

    def score(found):
        low, high = random.mean(1, keepdims=True), expert.mean(1, keepdims=True)
        return 100 * (found - low) / (high - low)

    parts = score(mixed).reshape(75, 5, -1).mean((0, 2))
    assert 15 < score(medium).mean() < 50
    assert 30 < score(mixed).mean() < 60 and np.all(np.diff(parts) > 5) and parts[0] < 15 and parts[-1] > 75
    with pytest.raises(UserError, match=r"unknown quality 'best' \(known: random, replay, medium"):
        maze_gaps().behaviour("best")


def test_who_is_not_told_gets_stuck():
    """Pushing ahead from everywhere reaches the goal's side in few tasks, so that a score says what was understood."""
    env = MazeGaps()

    def walk(key, task):
        def step(state, _):
            return env.step(state, module.push_towards(task[2:], state.obs[:2], state.obs[2:])), None

        return jax.lax.scan(step, env.reset_task(key, task), None, HORIZON)[0].obs[0]

    tasks = jax.random.uniform(KEY, (200, 4), minval=module.LOW, maxval=module.HIGH)
    ends = jax.jit(jax.vmap(walk))(jax.random.split(KEY, 200), tasks)
    assert np.mean(ends > 1.0) < 0.2


# --- wordings --------------------------------------------------------------------------------------------------------

EXAMPLE = {"left_gap": -1.21, "right_gap": 0.4, "goal_x": 2.35, "goal_y": -0.87}


def test_descriptions_by_hand():
    texts = maze_gaps().descriptions(EXAMPLE, held_out=False)
    assert texts[0].startswith("Two walls stand in your way:") and len(texts) == len(set(texts)) > 200
    assert sum("below the middle" in text for text in texts) > 5


def test_descriptions_tell_mazes_apart():
    told = [maze_gaps().descriptions(task.parameters, held_out=False)[0] for task in maze_gaps().tasks()]
    assert len(set(told)) == 75


def test_walls_to_draw():
    walls = module.wall_rectangles({"left_gap": 0.5, "right_gap": -1.0, "goal_x": 2.0, "goal_y": 1.0})
    assert walls.shape == (8, 4) and (walls[:, 2:] > 0).all()
    np.testing.assert_allclose(walls[4], [-1.15, -2.0, 0.3, 2.2])  # up to y = 0.2
    np.testing.assert_allclose(walls[5], [-1.15, 0.8, 0.3, 1.2])
