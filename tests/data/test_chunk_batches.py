"""Chunks of actions in batches: what a transition of several steps is, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmdpd_jax.data.minari_io import Episodes
from llmdpd_jax.data.normalise import denormalise_action, normalise_action
from llmdpd_jax.data.sampler import BatchSizes, sample_batch
from llmdpd_jax.data.store import build_store
from llmdpd_jax.types import Statistics

LENGTHS = np.array([3, 5, 4, 3])  # episodes of two tasks, two each
ENDS = np.array([True, False, True, False])  # the others were cut by a time limit
DISCOUNT = 0.5
KEYS = jax.random.split(jax.random.key(0), 500)


@pytest.fixture(scope="module")
def store():
    """Observations and actions are 10 x episode + step, the second action number is its negative; reward 2^step."""
    tasks = []
    for number in ([0, 1], [2, 3]):
        lengths, episode = LENGTHS[number], np.array(number)[:, None]
        steps = np.arange(lengths.max() + 1)[None]
        tags = np.where(steps <= lengths[:, None], 10.0 * episode + steps, np.nan)  # padding must never be read
        last = steps[:, :-1] == lengths[:, None] - 1
        tasks.append(
            Episodes(
                dataset="",
                observations=np.float32(tags)[..., None],
                actions=np.float32(np.stack([tags, -tags], -1)[:, :-1]),
                rewards=np.float32(np.where(steps < lengths[:, None], 2.0**steps, np.nan))[:, :-1],
                terminations=last & ENDS[number][:, None],
                lengths=lengths.astype(np.int32),
                action_low=np.zeros(2, np.float32),
                action_high=np.ones(2, np.float32),
            )
        )
    return build_store(tasks)


def draw(store, chunk):
    return jax.jit(lambda keys: sample_batch(store, keys, BatchSizes(500, 4, 2, chunk, DISCOUNT)))(KEYS)


def test_a_chunk_of_three_by_hand(store):
    """Episodes of 3, 5, 4 and 3 steps have 1, 3, 2 and 1 starts."""
    batch = draw(store, 3)
    episode, step = np.divmod(np.asarray(batch.observations[..., 0]).astype(int), 10)
    found = {}
    for e, t, action, reward, following, end in zip(
        *(
            np.asarray(x).reshape(-1, *x.shape[2:])
            for x in (episode, step, batch.actions, batch.rewards, batch.next_observations, batch.terminations)
        ),
        strict=True,
    ):
        found.setdefault((int(e), int(t)), set()).add((*action.tolist(), float(reward), float(following[0]), bool(end)))
    # Every start has one content. Rewards 2^t + 0.5 * 2^(t+1) + 0.25 * 2^(t+2) = 3 * 2^t.
    assert found == {
        (0, 0): {(0, 0, 1, -1, 2, -2, 3, 3, True)},  # an episode of exactly three steps, which ended
        (1, 0): {(10, -10, 11, -11, 12, -12, 3, 13, False)},
        (1, 1): {(11, -11, 12, -12, 13, -13, 6, 14, False)},
        (1, 2): {(12, -12, 13, -13, 14, -14, 12, 15, False)},  # up to a time limit
        (2, 0): {(20, -20, 21, -21, 22, -22, 3, 23, False)},
        (2, 1): {(21, -21, 22, -22, 23, -23, 6, 24, True)},
        (3, 0): {(30, -30, 31, -31, 32, -32, 3, 33, False)},
    }


def test_starts_are_uniform(store):
    """Where the prompt is episode 0, transitions are of episode 1: each of its three starts alike."""
    step = np.asarray(draw(store, 3).observations[..., 0])
    counts = np.array([(step == tag).sum() for tag in (10, 11, 12)])
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.06)


def test_an_episode_shorter_than_others_still_has_its_prompt(store):
    """Trajectory prompts are single steps, whatever the chunk."""
    batch = draw(store, 3)
    assert batch.prompt.actions.shape == (500, 2, 2) and batch.prompt.mask.all()
    assert not np.array_equal(np.asarray(batch.prompt.observations[:, 0, 0]) // 10, batch.observations[:, 0, 0] // 10)


def test_a_chunk_of_one_is_a_transition(store):
    """Whatever the discount, to the same bits."""
    plain = sample_batch(store, KEYS, BatchSizes(500, 4, 2))
    jax.tree.map(np.testing.assert_array_equal, draw(store, 1), plain)
    steps = np.asarray(plain.observations[..., 0])
    np.testing.assert_array_equal(plain.next_observations[..., 0], steps + 1)
    np.testing.assert_array_equal(plain.rewards, 2.0 ** (steps % 10))
    np.testing.assert_array_equal(plain.actions, np.stack([steps, -steps], -1))
    assert plain.terminations.any()


def test_every_step_of_a_chunk_is_normalised_by_the_same_bounds():
    zero = jnp.zeros(1)
    statistics = Statistics(zero, zero + 1, jnp.array([-1.0, 0.0]), jnp.array([3.0, 0.2]), zero[0], zero[0] + 1)
    chunk = jnp.array([[-1.0, 0.2, 3.0, 0.05, 1.0, 0.1]])
    normalised = normalise_action(statistics, chunk)
    np.testing.assert_allclose(normalised, [[-1.0, 1.0, 1.0, -0.5, 0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(denormalise_action(statistics, normalised), chunk, atol=1e-6)
