"""maze by hand: walls, distances to them, ways around them, its tasks and its behaviour policies."""

import functools
import itertools
import re
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.data.collect import returns_of, roll_out
from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.numbers import read_numbers
from llmdpd_jax.tasks import maze as module
from llmdpd_jax.tasks.maze import LAYOUTS, SHAPES, WALLS, Maze, maze, next_cells
from llmdpd_jax.tasks.maze_wordings import HELD_OUT_NAMES, TRAIN_NAMES

KEY = jax.random.key(0)
UMAZE, MEDIUM, LARGE = range(3)


def standing(layout, x, y, goal=(0.0, 0.0), velocity=(0.0, 0.0)):
    """A state at a place of a layout."""
    state = Maze().reset_task(KEY, jnp.array([layout, *goal], jnp.float32))
    return state.replace(obs=Maze._observe(layout, jnp.array([x, y]), jnp.array(velocity)))


def test_layouts_have_the_free_cells_of_their_pictures():
    assert LAYOUTS == ("umaze", "medium", "large") and SHAPES.tolist() == [[5, 5], [8, 8], [9, 12]]
    assert (~WALLS).sum((1, 2)).tolist() == [7, 26, 46]
    assert WALLS[:, 0].all() and WALLS[:, :, 0].all()
    # The U opens to the left: only the middle row's right cell joins the two corridors.
    assert (~WALLS[UMAZE, 1:4, 1:4]).tolist() == [[True, True, True], [False, False, True], [True, True, True]]


def test_every_free_cell_leads_to_every_other():
    for walls in WALLS:
        start = tuple(np.argwhere(~walls)[0])
        seen, queue = {start}, deque([start])
        while queue:
            row, column = queue.popleft()
            for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if not walls[cell] and cell not in seen:
                    seen.add(cell)
                    queue.append(cell)
        assert len(seen) == (~walls).sum()


def test_distances_to_the_walls_by_hand():
    # The middle of the umaze's right column: 2.5 m of maze end 1.5 m from the middle of it.
    np.testing.assert_allclose(module.ranges(UMAZE, jnp.array([1.2, 0.1])), [0.3, 0.7, 1.4, 1.6], atol=1e-6)
    # Its upper left cell: a corridor to the right, the wall of the middle row below.
    np.testing.assert_allclose(module.ranges(UMAZE, jnp.array([-1.0, 1.0])), [2.5, 0.5, 0.5, 0.5], atol=1e-6)


def test_moves_and_rewards_by_hand():
    env, state = Maze(), standing(UMAZE, -1.0, 1.0, goal=(1.0, -1.0))
    state = env.step(state, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(state.obs[:4], [-0.84, 1.0, 0.8, 0.0], atol=1e-6)
    assert state.reward == pytest.approx(np.exp(-np.hypot(1.84, 2.0)), rel=1e-5)
    state = env.step(state, jnp.array([5.0, 0.0]))  # clipped to 1: 0.6 x 0.8 + 0.8 m/s
    np.testing.assert_allclose(state.obs[:4], [-0.584, 1.0, 1.28, 0.0], atol=1e-6)
    for _ in range(100):
        state = env.step(state.replace(obs=state.obs.at[0].set(-1.0)), jnp.array([1.0, 0.0]))
    assert state.obs[2] == pytest.approx(2.0, rel=1e-4) and state.done == 0


def test_walls_stop_what_runs_into_them_and_not_what_slides_along():
    env = Maze()
    state = env.step(standing(UMAZE, 1.0, 1.39, velocity=(-1.0, 1.0)), jnp.array([-0.5, 0.5]))  # still 1 m/s
    # The wall above begins at 1.5 and the point is 0.1 thick on each side; to the left the way is free.
    np.testing.assert_allclose(state.obs[:4], [0.8, 1.39, -1.0, 0.0], atol=1e-6)
    assert state.obs[6] == pytest.approx(0.11, abs=1e-6)


def test_no_push_leads_into_a_wall():
    def walk(key, layout):
        start_key, key = jax.random.split(key)
        state = Maze().reset_task(start_key, jnp.array([layout, 0.0, 0.0]))

        def step(state, key):
            state = Maze().step(state, jax.random.uniform(key, (2,), minval=-3, maxval=3))
            return state, module.is_blocked(layout, state.obs[:2])

        end, blocked = jax.lax.scan(step, state, jax.random.split(key, 300))
        return blocked, end.obs[:2] - state.obs[:2]

    keys = jax.random.split(KEY, 120)
    blocked, moved = jax.jit(jax.vmap(walk))(keys, jnp.arange(120) % 3)
    assert not blocked.any() and np.abs(moved).max() > 2


def test_a_compiled_batch_of_tasks_equals_single_environments():
    env = Maze()
    parameters = np.stack([maze().parameter_array(task.parameters) for task in maze().tasks()[:45]])
    keys = jax.random.split(KEY, 45)
    batch, step = jax.vmap(env.reset_task)(keys, parameters), jax.jit(jax.vmap(env.step))
    actions = jax.random.uniform(KEY, (5, 45, 2), minval=-1, maxval=1)
    states = [batch := step(batch, action) for action in actions]
    single = jax.jit(env.step)
    for i in range(45):
        state = env.reset_task(keys[i], parameters[i])
        for action, many in zip(actions, states, strict=True):
            state = single(state, action[i])
            np.testing.assert_allclose(many.obs[i], state.obs, atol=1e-5)
            np.testing.assert_allclose(many.reward[i], state.reward, atol=1e-5)


def test_reset_draws_layouts_and_free_places_all_over():
    states = jax.vmap(Maze().reset)(jax.random.split(KEY, 3000))
    layout, goal = states.info["parameters"][:, 0].astype(int), states.info["parameters"][:, 1:]
    cells = jax.vmap(module.cell_of)
    for places in (goal, states.obs[:, :2]):
        found = set(zip(layout.tolist(), cells(layout, places).tolist(), strict=True))
        assert found == {(i, int(c)) for i in range(3) for c in np.flatnonzero(~WALLS[i].ravel())}
    assert (states.obs[:, 2:4] == 0).all()


def test_shortest_ways_by_hand():
    columns = WALLS.shape[2]
    cell, goal = 1 * columns + 1, 3 * columns + 1  # both ends of the U
    way = [cell]
    while way[-1] != goal:
        way.append(int(next_cells()[UMAZE, goal, way[-1]]))
    assert [divmod(c, columns) for c in way] == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert next_cells()[UMAZE, goal, goal] == goal


def test_test_goals_lie_in_cells_without_a_train_goal():
    tasks = maze().tasks()
    assert [sum(task.split == split for task in tasks) for split in ("train", "test")] == [50, 15]
    assert len({tuple(task.parameters.values()) for task in tasks}) == len({task.name for task in tasks}) == 65
    cells = {"train": set(), "test": set()}
    for task in tasks:
        layout, x, y = task.parameters.values()
        assert (round(x, 2), round(y, 2)) == (x, y)
        assert not module.is_blocked(int(layout), jnp.array([x, y]))
        cells[task.split].add((layout, int(module.cell_of(int(layout), jnp.array([x, y])))))
    assert not cells["train"] & cells["test"] and len(cells["test"]) == 15
    assert tasks[0].parameters == {"layout": 0.0, "goal_x": 0.82, "goal_y": -0.19}


EPISODES = 40


@functools.cache
def played(quality):
    parameters = np.stack([maze().parameter_array(task.parameters) for task in maze().tasks()])
    seeds = jax.random.bits(jax.random.key(1), (65, EPISODES))
    return jax.device_get(jax.jit(lambda: roll_out(maze(), quality, seeds, parameters))()), parameters


def scores(quality):
    random, expert, found = (np.asarray(returns_of(played(q)[0])) for q in ("random", "expert", quality))
    random, expert = random.mean(1, keepdims=True), expert.mean(1, keepdims=True)
    return 100 * (found - random) / (expert - random)


def test_the_expert_arrives_from_everywhere_and_stays():
    rollout, parameters = played("expert")
    distance = np.linalg.norm(rollout.observations[..., :2] - parameters[:, None, None, 1:], axis=-1)
    assert distance[:, :, -1].max() < 0.01
    # The longest way of the large maze has some 20 cells, at 2 m/s half a second each.
    assert (distance < 0.3).argmax(-1).max() < 65


def test_qualities_score_as_their_names_say():
    assert 25 < scores("medium").mean() < 45
    mixed = scores("mixed")
    parts = mixed.reshape(65, 5, -1).mean((0, 2))
    assert 10 < scores("replay").mean() < 0.6 * mixed.mean()
    assert 35 < mixed.mean() < 60 and np.all(np.diff(parts) > 5) and parts[0] < 10 and parts[-1] > 80
    with pytest.raises(UserError, match=r"unknown quality 'best' \(known: random, replay, medium"):
        maze().behaviour("best")


# --- wordings --------------------------------------------------------------------------------------------------------


def test_descriptions_name_the_maze_and_the_goal():
    texts = maze().descriptions({"layout": 2.0, "goal_x": -4.25, "goal_y": 0.11}, held_out=False)
    assert texts[0] == "In the large maze. Navigate to position (-4.25, 0.11)"
    assert "Layout large: The reward is highest at the point (-4.25 m, 0.11 m)." in texts
    assert len(texts) == len(set(texts)) > 400
    assert {name for name in TRAIN_NAMES["large"] if any(name in text for text in texts)} == set(TRAIN_NAMES["large"])


@pytest.mark.parametrize("held_out", [False, True])
def test_each_description_determines_the_maze_and_the_size_of_both_coordinates(held_out):
    example = {"goal_x": -4.25, "goal_y": 0.11}
    names = HELD_OUT_NAMES if held_out else TRAIN_NAMES
    told = [maze().descriptions({"layout": float(i), **example}, held_out=held_out) for i in range(3)]
    for same in zip(*told, strict=True):
        found = [
            [n for n in names[layout] if re.search(rf"\b{n}\b", text)]
            for layout, text in zip(LAYOUTS, same, strict=True)
        ]
        assert all(found) and len(set(same)) == 3, same
        values = [abs(number.value) for number in read_numbers(same[0])]
        for size in (4.25, 0.11):
            assert any(value == pytest.approx(size, abs=0.006) for value in values), same[0]


def test_held_out_names_are_in_no_train_wording():
    train = {name for names in TRAIN_NAMES.values() for name in names}
    assert not train & {name for names in HELD_OUT_NAMES.values() for name in names}
    texts = [
        set(maze().descriptions(task.parameters, held_out=h)) for task in maze().tasks()[:3] for h in (False, True)
    ]
    assert not any(one & other for one, other in itertools.combinations(texts, 2))


def test_walls_to_draw():
    squares = module.wall_squares({"layout": 0.0})
    assert squares.shape == (25 - 7, 4) and (squares[:, 2:] == 1).all()
    assert squares.min(0).tolist()[:2] == [-2.5, -2.5] and squares.max(0).tolist()[:2] == [1.5, 1.5]
    assert [-1.5, -0.5, 1, 1] in squares.tolist() and [0.5, -0.5, 1, 1] not in squares.tolist()
