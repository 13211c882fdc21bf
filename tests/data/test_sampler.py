"""What the sampler draws: uniform tasks and steps, prompts from other episodes, right windows and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tagged import (
    ALL_LENGTHS,
    LENGTHS,
    TASK_OF,
    check_prompts_are_of_other_episodes,
    check_transitions,
    check_windows,
    origin,
)

from llmdpd_jax.data.minari_io import Episodes
from llmdpd_jax.data.sampler import BatchSizes, sample_batch, sample_prompts
from llmdpd_jax.data.store import build_store


@pytest.fixture(scope="module")
def store():
    """Tagged episodes (`tagged`) with padding that is not a number."""
    tasks, episode = [], 0
    for lengths in LENGTHS:
        number = episode + np.arange(len(lengths))[:, None]
        steps = np.arange(max(lengths) + 1)[None]
        observations = np.float32(100 * number + steps)
        observations[steps > np.array(lengths)[:, None]] = np.nan  # padding must never be read
        tasks.append(
            Episodes(
                dataset="",
                observations=observations[..., None],
                actions=np.stack(np.broadcast_arrays(number, steps[:, :-1]), -1).astype(np.float32),
                rewards=-observations[:, :-1],
                terminations=(steps[:, :-1] == np.array(lengths)[:, None] - 1) & (number % 2 == 0),
                lengths=np.array(lengths, np.int32),
                action_low=np.zeros(2, np.float32),
                action_high=np.ones(2, np.float32),
            )
        )
        episode += len(lengths)
    return build_store(tasks)


@pytest.fixture(scope="module")
def batch(store):
    keys = jax.random.split(jax.random.key(0), 6000)
    return jax.jit(sample_batch, static_argnums=2)(store, keys, BatchSizes(6000, 4, 4))


draw_prompts = jax.jit(sample_prompts, static_argnums=3)


def test_transitions_belong_together(batch):
    assert not np.isnan(batch.observations).any() and not np.isnan(batch.next_observations).any()
    check_transitions(batch)


def test_prompt_is_another_episode_of_the_same_task(batch):
    check_prompts_are_of_other_episodes(batch)


def chi_square(counts, shares):
    """Chi-square statistic per degree of freedom: about 1 if `counts` are drawn from `shares`."""
    expected = np.asarray(shares) * counts.sum()
    return (((counts - expected) ** 2 / expected).sum()) / (len(counts) - 1)


def test_tasks_prompts_and_steps_are_uniform(batch):
    task = np.asarray(batch.task_id)
    assert chi_square(np.bincount(task, minlength=3), [1 / 3] * 3) < 4
    prompt, _ = origin(batch.prompt.observations[:, 0])
    episode, step = origin(batch.observations)
    for number, lengths in enumerate(LENGTHS):
        first = TASK_OF.tolist().index(number)
        mine = prompt[task == number] - first
        assert chi_square(np.bincount(mine, minlength=len(lengths)), [1 / len(lengths)] * len(lengths)) < 4
        for chosen in range(len(lengths)):
            groups = prompt == first + chosen
            others = [(e, t) for e, n in enumerate(lengths) if e != chosen for t in range(n)]
            drawn = list(zip((episode[groups] - first).ravel(), step[groups].ravel(), strict=True))
            counts = np.array([drawn.count(pair) for pair in others])
            assert counts.sum() == len(drawn)
            assert chi_square(counts, [1 / len(others)] * len(others)) < 4


def test_transitions_carry_the_weight_of_their_episode(store, batch):
    weights = np.linspace(0.1, 2.0, 9, dtype=np.float32)
    keys = jax.random.split(jax.random.key(0), 6000)
    weighted = jax.jit(sample_batch, static_argnums=2)(store.replace(weights=weights), keys, BatchSizes(6000, 4, 4))
    episode, _ = origin(weighted.observations)
    np.testing.assert_array_equal(weighted.weights, weights[episode])
    jax.tree.map(np.testing.assert_array_equal, weighted.replace(weights=None), batch)  # the same are drawn


@pytest.mark.parametrize(("share", "best"), [(0.4, [0, 3, 6, 8]), (0.0, [0, 3, 6]), (0.67, [0, 1, 3, 6, 7, 8])])
def test_prompts_may_be_the_best_episodes_alone(store, share, best):
    """Rewards are negative: long episodes return less, and of the last task the second, fourth and third most."""
    sizes = BatchSizes(6000, 4, 4, prompt_share=share)
    batch = jax.jit(sample_batch, static_argnums=2)(store, jax.random.split(jax.random.key(5), 6000), sizes)
    check_transitions(batch)
    check_prompts_are_of_other_episodes(batch)
    prompt, _ = check_windows(batch.prompt, 4)
    tasks = np.bincount(TASK_OF[best])
    assert chi_square(np.bincount(prompt, minlength=9)[best], 1 / (3 * tasks[TASK_OF[best]])) < 4
    assert sorted(set(prompt)) == best
    asked = jax.random.randint(jax.random.key(6), (500,), 0, 3)
    episode, _ = check_windows(sample_prompts(store, jax.random.key(7), asked, 4, share), 4)
    assert sorted(set(episode)) == best


def test_prompt_windows(batch):
    episode, start = check_windows(batch.prompt, 4)
    # The longest episode has 7 steps: a window of 4 starts at 0, 1, 2 or 3 alike.
    assert chi_square(np.bincount(start[ALL_LENGTHS[episode] == 7]), [1 / 4] * 4) < 4


def test_prompts_are_drawn_from_data_that_no_memory_has_room_for(store):
    """What is not drawn stays where it is: here 10^11 times the first episode, as a view of it."""
    names = ("observations", "actions", "rewards", "lengths")
    first = {name: np.asarray(getattr(store, name)[0]) for name in names}
    vast = store.replace(**{name: np.broadcast_to(array, (10**11, *array.shape)) for name, array in first.items()})
    episode, _ = check_windows(sample_prompts(vast, jax.random.key(8), np.array([0, 1, 2]), 4), 4)
    assert episode.tolist() == [0, 0, 0]


def test_prompts_longer_than_every_episode(store):
    prompt = draw_prompts(store, jax.random.key(1), jnp.arange(3), 12)
    assert prompt.mask.shape == (3, 12)
    check_windows(prompt, 12)


def test_prompts_for_given_tasks(store):
    tasks = jnp.array([2, 0, 0, 1] * 500)
    episode, _ = check_windows(draw_prompts(store, jax.random.key(2), tasks, 3), 3)
    np.testing.assert_array_equal(TASK_OF[episode], tasks)
    assert chi_square(np.bincount(episode[tasks == 2] - 5, minlength=4), [1 / 4] * 4) < 4


def test_the_key_decides_and_scan_works(store):
    draw = jax.jit(lambda key: sample_batch(store, jax.random.split(key, 3), BatchSizes(3, 2, 4)))
    keys = jax.random.split(jax.random.key(3), 2)
    _, scanned = jax.jit(lambda keys: jax.lax.scan(lambda carry, key: (carry, draw(key)), None, keys))(keys)
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), scanned, draw(keys[i]))
    assert not np.array_equal(scanned.observations[0], scanned.observations[1])
