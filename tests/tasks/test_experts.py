"""Learned behaviour policies: the same actions as Brax's networks, and what each quality means."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.acme import running_statistics
from brax.training.agents.ppo import networks as ppo_networks

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.experts import Expert, load_expert, make_behaviour, pre_action, save_expert
from llmdpd_jax.tasks.family import PLAIN, QUALITIES, Frame, family_names, get_family
from llmdpd_jax.training import expert as training

KEY = jax.random.key(0)
OBSERVATION, PARAMETERS, ACTION = 3, 1, 2


def brax_policy(seed):
    """A policy of Brax's with random weights, as its trainer hands it out."""
    size = OBSERVATION + PARAMETERS
    networks = ppo_networks.make_ppo_networks(
        size, ACTION, running_statistics.normalize, policy_hidden_layer_sizes=training.HIDDEN
    )
    statistics = running_statistics.update(
        running_statistics.init_state(jax.ShapeDtypeStruct((size,), jnp.float32)),
        3 + 2 * jax.random.normal(jax.random.key(seed), (50, size)),
    )
    return networks, (statistics, networks.policy_network.init(jax.random.key(seed)))


def looks(count):
    return [brax_policy(seed)[1] for seed in range(count)]


def test_actions_are_those_of_brax():
    policies = looks(3)
    expert = training.stack(policies)
    seen, told = jnp.array([1.0, 5.0, 2.0]), jnp.array([4.0])
    for i in range(3):
        networks, params = brax_policy(i)
        inference = ppo_networks.make_inference_fn(networks)
        likeliest, _ = inference(params, deterministic=True)(jnp.concatenate([seen, told]), KEY)
        mean, std = pre_action(expert, i, jnp.concatenate([seen, told]))
        np.testing.assert_allclose(jnp.tanh(mean), likeliest, rtol=1e-5)
        logits = networks.policy_network.apply(*params, jnp.concatenate([seen, told]))
        spread = networks.parametric_action_distribution.create_dist(logits)
        np.testing.assert_allclose(std, spread.scale, rtol=1e-5)


def constant_expert(values, medium=1):
    """Snapshot i acts by tanh(values[i]), with hardly any spread."""
    count, size = len(values), OBSERVATION + PARAMETERS
    out = np.concatenate([np.tile(np.array(values)[:, None], ACTION), np.full((count, ACTION), -20.0)], axis=1)
    return Expert(
        np.zeros((count, size)), np.ones((count, size)), (np.zeros((count, size, 2 * ACTION)),), (out,), medium
    )


def acted(expert, quality, progress=0.0, count=1):
    behaviour = make_behaviour(expert, quality)
    traits = behaviour.draw(KEY, jnp.asarray(progress), jnp.zeros(PARAMETERS))
    keys = jax.random.split(KEY, count)
    return jax.vmap(lambda key: behaviour.act(traits, jnp.zeros(PARAMETERS), jnp.zeros(OBSERVATION), key))(keys)


def test_qualities():
    expert = constant_expert([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(acted(expert, "expert"), np.tanh(0.4), atol=1e-6)
    np.testing.assert_allclose(acted(expert, "medium"), np.tanh(0.2), atol=0.01)
    for progress, value in {0.0: 0.1, 0.24: 0.1, 0.26: 0.2, 0.74: 0.3, 0.76: 0.4, 1.0: 0.4}.items():
        np.testing.assert_allclose(acted(expert, "mixed", progress), np.tanh(value), atol=0.01)
    for progress, value in {0.0: 0.1, 0.49: 0.1, 0.51: 0.2, 1.0: 0.2}.items():  # of the snapshots up to medium
        np.testing.assert_allclose(acted(expert, "replay", progress), np.tanh(value), atol=0.01)
    random = acted(expert, "random", count=4000)
    assert random.min() < -0.99 and random.max() > 0.99 and abs(random.mean()) < 0.03
    with pytest.raises(UserError, match=f"'best'.*{', '.join(QUALITIES)}"):
        make_behaviour(expert, "best")


def test_a_spread_policy_is_drawn_from_unless_it_is_the_expert():
    expert = constant_expert([0.0, 0.0])
    expert.biases[0][:, ACTION:] = 1.0  # softplus(1) + 0.001 = 1.314
    drawn = np.arctanh(acted(expert, "mixed", count=4000))
    np.testing.assert_allclose(drawn.std(), 1.314, atol=0.04)
    assert np.all(acted(expert, "expert", count=9) == 0)


def test_a_frame_decides_what_an_expert_sees_and_what_its_actions_are():
    """Here it is told by how much the observation falls short, and acts mirrored; uniform actions are as they are."""
    frame = Frame(lambda seen, told: told - seen, lambda seen, told, action: seen[0] * action[::-1])
    expert = Expert(np.zeros((1, 2)), np.ones((1, 2)), (np.eye(2, 4)[None],), (np.array([[0, 0, -20.0, -20]]),), 0)
    seen, told = jnp.array([0.5, 0.2]), jnp.array([0.8, 0.1])

    def acted(quality, **options):
        behaviour = make_behaviour(expert, quality, **options)
        return behaviour.act(behaviour.draw(KEY, 0.0, told), told, seen, KEY)

    np.testing.assert_allclose(acted("expert", frame=frame), 0.5 * np.tanh([-0.1, 0.3]), atol=1e-6)
    np.testing.assert_array_equal(
        acted("random", frame=frame), acted("random", frame=replace(frame, action=PLAIN.action))
    )
    np.testing.assert_array_equal(PLAIN.inputs(seen, told), jnp.concatenate([seen, told]))
    np.testing.assert_array_equal(PLAIN.action(seen, told, told), told)


def test_a_file_gives_back_what_was_written(tmp_path):
    expert = training.stack(looks(2)).replace(medium=1)
    save_expert(tmp_path / "new" / "a.safetensors", expert, {"family": "x", "steps": 12})
    found, record = load_expert(tmp_path / "new" / "a.safetensors")
    assert record == {"family": "x", "steps": 12, "medium": 1} and found.medium == 1
    np.testing.assert_array_equal(found.mean, expert.mean)
    for mine, theirs in zip(found.kernels + found.biases, expert.kernels + expert.biases, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.safetensors: no such expert; `llmdpd expert` trains one"):
        load_expert(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"b\.safetensors: not an expert"):
        load_expert(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", [name for name in family_names() if get_family(name).expert])
def test_shipped_experts_fit_their_families_and_say_how_they_came_to_be(name):
    from llmdpd_jax.tasks.experts import FOLDER

    family = get_family(name)
    expert, record = load_expert(FOLDER / f"{name}.safetensors")
    seen, told = jnp.zeros(family.observation_size), jnp.zeros(len(family.parameter_names))
    assert expert.mean.shape == (training.SNAPSHOTS, *family.frame.inputs(seen, told).shape)
    assert expert.kernels[-1].shape[-1] == 2 * family.action_size
    assert record["family"] == name and record["task"] is None and record["device"]
    means = {quality: np.mean(list(returns.values())) for quality, returns in record["returns"].items()}
    assert means["random"] < means["medium"] < means["expert"]
    assert set(record["returns"]["expert"]) == {task.name for task in family.tasks()}
    behaviour = family.behaviour("expert")
    action = behaviour.act(behaviour.draw(KEY, 1.0, told), told, seen, KEY)
    assert np.isfinite(action).all() and np.abs(action).max() <= 1
