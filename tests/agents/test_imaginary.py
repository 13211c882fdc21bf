"""Imaginary tasks: between two train tasks, rewarded by the model's prediction."""

import dataclasses

import jax
import numpy as np
import pytest
from test_update import constant_critic
from tiny import tiny_agent

from llmdpd_jax.agents.llmdpd import mix_with_next, mixing_weights


def test_as_many_groups_as_asked_for_are_mixed_and_all_the_way_alike():
    keys = jax.random.split(jax.random.key(0), 20_000)
    weights = np.asarray(mixing_weights(keys, keys.shape, 0.3))
    mixed = weights[weights > 0]
    assert len(mixed) / len(weights) == pytest.approx(0.3, abs=0.015)
    np.testing.assert_allclose(np.quantile(mixed, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
    # A group's weight depends on its own key alone, on whatever device it is.
    np.testing.assert_array_equal(mixing_weights(keys[5:8], (3,), 0.3), weights[5:8])


def test_a_mixed_task_lies_between_a_group_and_the_next():
    vectors = np.float32([[0, 10], [4, 20], [8, -10]])
    mixed = mix_with_next(None, vectors, np.float32([0.25, 0.0, 0.5]))
    np.testing.assert_allclose(mixed, [[1, 12.5], [4, 20], [4, 0]])


@pytest.fixture(scope="module", params=[1, 3])
def tinies(request):
    """The same agent without and with imaginary tasks; actions of a step, or of three."""
    chunk = {"agent.chunk": request.param}
    return request.param, tiny_agent(chunk), tiny_agent(chunk | {"agent.imaginary_share": 1.0})


def test_the_model_rewards_what_is_done_in_an_imaginary_task(tinies):
    """A model that predicts 0.4 a step; critics that answer 1, 1.5 and 0.5, and their slow copies 2, 4 and 3."""
    chunk, without, tiny = tinies
    params = dict(tiny.state.params)
    params["critic"] = constant_critic(params["critic"], [1.0, 1.5, 0.5])
    out = params["model"]["out"]
    bias = np.zeros_like(out["bias"])
    bias[0] = 0.4  # of the reward; the others are of the next observation
    params["model"] = {**params["model"], "out": {"kernel": np.zeros_like(out["kernel"]), "bias": bias}}
    target = constant_critic(tiny.state.target_critic, [2.0, 4.0, 3.0])
    state = tiny.state.replace(params=params, target_critic=target)
    metrics = tiny.update(state, tiny.batch, tiny.text)[1]
    following = np.where(tiny.batch.terminations, 0.0, 0.9**chunk * 2.0)
    squares = [(q - (0.4 * chunk + following)) ** 2 for q in (1.0, 1.5, 0.5)]
    assert metrics["loss/critic"] == pytest.approx(np.mean(squares), rel=1e-5)
    # What the model and the reader learn is of the logged tasks, as ever.
    known = without.update(state, tiny.batch, tiny.text)[1]
    for name in ("loss/model", "loss/alignment", "loss/consistency"):
        assert metrics[name] == known[name], name


def test_the_policy_is_told_of_the_imaginary_task(tinies):
    """What the critics answer changes with the prompts of the next group, but only in imaginary tasks."""
    for tiny, changes in zip(tinies[1:], (False, True), strict=True):
        states = tiny.text.states.copy()
        states[2] += 1.0
        text = dataclasses.replace(tiny.text, states=states)
        # Groups 0 and 1 count, of which 1 precedes the changed one; the trajectories are left out.
        weights = np.zeros_like(tiny.batch.weights)
        weights[:2] = 1.0
        batch = dataclasses.replace(tiny.batch, weights=weights)
        off = {"trajectory_dropout": 1.0}
        losses = [tiny.update(tiny.state, batch, told, **off)[1]["loss/cloning"] for told in (tiny.text, text)]
        assert (losses[0] != losses[1]) == changes
