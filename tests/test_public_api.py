"""What users of the package hold in their hands: `load_policy`, prompts in, actions out."""

import subprocess
import sys

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmdpd_jax
from llmdpd_jax import Guidance, load_policy
from llmdpd_jax.errors import UserError
from llmdpd_jax.policy import GymnasiumAgent
from llmdpd_jax.tasks.family import get_family

SEEN = np.random.default_rng(3).uniform(-1, 1, (64, 2))  # so many that some actions lie within the bounds
HERE, THERE = "Navigate to position (0.31, -0.42).", "Navigate to position (-0.80, 0.77)."


@pytest.fixture(scope="module")
def tiny_policy(tiny_run, load_lively_policy):
    """One policy for all tests here, so that acting is compiled once for each shape."""
    return load_lively_policy(tiny_run)


@pytest.fixture
def policy(world, tiny_policy):
    return tiny_policy


def episode(seed=0, steps=20):
    random = np.random.default_rng(seed)
    return {
        "observations": random.uniform(-1, 1, (steps + 1, 2)),
        "actions": random.uniform(-1, 1, (steps, 2)),
        "rewards": -random.uniform(0, 1, steps),
    }


def act(policy, context, observation=(0.1, 0.2), seed=0, **options):
    return np.asarray(policy.act(np.array(observation), context, jax.random.key(seed), **options))


def test_public_names():
    assert llmdpd_jax.__all__ == ["Guidance", "Policy", "load_policy"]
    assert all(callable(getattr(llmdpd_jax, name)) for name in llmdpd_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_polcy'"):
        llmdpd_jax.load_polcy  # noqa: B018


def test_importing_is_light():
    code = "import sys, llmdpd_jax; assert not {'jax', 'brax', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_policy_takes_a_run_or_a_step(world, tiny_run):
    steps = {
        path: load_policy(path).checkpoint.state.step
        for path in (tiny_run, str(tiny_run), tiny_run / "checkpoints", tiny_run / "checkpoints" / "4")
    }
    assert list(steps.values()) == [6, 6, 6, 4]
    with pytest.raises(UserError, match="checkpoints/5"):
        load_policy(tiny_run / "checkpoints" / "5")


def test_prompts_alone_and_in_lists(policy):
    """A list gives the same contexts as its members do one by one, and every kind of prompt another one."""
    contexts = {
        "none": policy.prompt(),
        "text": policy.prompt(HERE),
        "trajectory": policy.prompt(trajectory=episode()),
        "both": policy.prompt(HERE, episode()),
    }
    full = {name: np.asarray(context.full) for name, context in contexts.items()}
    assert {vector.shape for vector in full.values()} == {(16,)}
    for a in full:
        for b in full:
            assert a == b or np.abs(full[a] - full[b]).max() > 1e-2, (a, b)

    lists = {
        "text": policy.prompt([HERE, THERE]),
        "trajectory": policy.prompt(trajectory=[episode(), episode(1)]),
        "both": policy.prompt([HERE, THERE], [episode(), episode(1)]),
    }
    seconds = {
        "text": policy.prompt(THERE),
        "trajectory": policy.prompt(trajectory=episode(1)),
        "both": policy.prompt(THERE, episode(1)),
    }
    for name, context in lists.items():
        assert context.full.shape == (2, 16)
        np.testing.assert_allclose(context.full[0], full[name], atol=1e-5)
        np.testing.assert_allclose(context.full[1], seconds[name].full, atol=1e-5)
        assert np.abs(context.full[0] - context.full[1]).max() > 1e-2


def test_one_prompt_serves_many(policy):
    """One description with a list of trajectories belongs to each of them, and the other way round."""
    context = policy.prompt(HERE, [episode(), episode(1)])
    np.testing.assert_allclose(context.full[1], policy.prompt(HERE, episode(1)).full, atol=1e-5)
    context = policy.prompt([HERE, THERE], episode())
    np.testing.assert_allclose(context.full[1], policy.prompt(THERE, episode()).full, atol=1e-5)


def test_trajectories_of_any_length(policy):
    """Of a long one the first `data.prompt_length` = 20 steps count; the padding of a short one does not."""
    long = episode(steps=31)

    def first(steps):
        return {name: array[: steps + (name == "observations")] for name, array in long.items()}

    start = first(20)
    np.testing.assert_array_equal(policy.prompt(trajectory=long).full, policy.prompt(trajectory=start).full)
    assert np.abs(policy.prompt(trajectory=first(3)).full - policy.prompt(trajectory=start).full).max() > 1e-3


@pytest.mark.parametrize(
    ("observations", "texts", "actions"),
    [((), None, ()), ((7,), None, (7,)), ((2,), 2, (2,)), ((5, 2), 2, (5, 2)), ((), 2, (2,))],
)
def test_any_batch_shape(policy, observations, texts, actions):
    context = policy.prompt(HERE if texts is None else [HERE, THERE])
    found = act(policy, context, np.zeros((*observations, 2)))
    assert found.shape == (*actions, 2) and np.abs(found).max() <= 1.0


def test_actions_depend_on_observation_prompt_and_key(policy):
    here = policy.prompt(HERE)
    first = act(policy, here, SEEN)
    np.testing.assert_array_equal(first, act(policy, here, SEEN))
    for other in (
        act(policy, here, SEEN, seed=1),
        act(policy, here, -SEEN),
        act(policy, policy.prompt(THERE), SEEN),
        act(policy, here, SEEN, steps=1),
        act(policy, here, SEEN, sampler="ancestral"),
    ):
        assert np.abs(first - other).max() > 1e-3


def test_guidance(policy):
    """1 is plain; 0 leaves a prompt out, exactly as if it had not been given; in between and beyond lie others."""
    both, text, trajectory = policy.prompt(HERE, episode()), policy.prompt(HERE), policy.prompt(trajectory=episode())
    plain = act(policy, both, SEEN)
    np.testing.assert_allclose(act(policy, both, SEEN, guidance={"text": 1.0, "trajectory": 1.0}), plain, atol=1e-5)
    np.testing.assert_allclose(act(policy, both, SEEN, guidance=Guidance()), plain, atol=1e-5)
    np.testing.assert_allclose(
        act(policy, both, SEEN, guidance={"trajectory": 0.0}), act(policy, text, SEEN), atol=1e-5
    )
    np.testing.assert_allclose(
        act(policy, both, SEEN, guidance={"text": 0.0}), act(policy, trajectory, SEEN), atol=1e-5
    )
    np.testing.assert_allclose(
        act(policy, text, SEEN, guidance={"text": 0.0}), act(policy, policy.prompt(), SEEN), atol=1e-5
    )
    assert np.abs(act(policy, text, SEEN, guidance={"text": 2.0}) - act(policy, text, SEEN)).max() > 1e-3
    with pytest.raises(UserError, match=r"unknown prompt \['txt'\]"):
        act(policy, both, guidance={"txt": 1.0})


def test_guidance_weights_do_not_recompile(policy):
    context = policy.prompt(HERE)
    act(policy, context, guidance={"text": 0.5})
    compiled = policy._act._cache_size()
    act(policy, context, guidance={"text": 2.5, "trajectory": 0.1})
    assert policy._act._cache_size() == compiled


def test_parameters_as_constants_of_the_program_act_as_arguments_do(policy, monkeypatch):
    """Those of large networks are no constants."""
    context = policy.prompt(HERE)
    monkeypatch.setattr("llmdpd_jax.policy.MOST_CONSTANTS", 0)
    handed_over = llmdpd_jax.Policy(policy.checkpoint)
    np.testing.assert_allclose(act(handed_over, context, SEEN), act(policy, context, SEEN), atol=1e-5)
    assert "denoiser" in handed_over._act.args[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation": np.zeros(3)}, r"last axis should have size 2, found shape \(3,\)"),
        ({"sampler": "dimm"}, "'dimm' is unknown"),
        ({"steps": 6}, "6 is out of range"),
        ({"steps": 0}, "0 is out of range"),
    ],
)
def test_what_act_refuses(policy, options, message):
    with pytest.raises(UserError, match=message):
        act(policy, policy.prompt(), **options)


class Plane(gym.Env):
    """A point to move about, as anyone would write it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.zeros(2, np.float32)
        return self.position, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.position = self.position + 0.1 * action
        return self.position, -float(np.linalg.norm(self.position)), False, False, {}


def test_values_are_those_of_the_critics_in_its_units(policy):
    context = policy.prompt(text=[HERE, THERE])
    observation, action = np.array([[0.1, 0.2], [0.3, -0.4]]), np.array([[1.0, -1.0], [0.5, 0.0]])
    values = policy.values(observation, action, context)
    checkpoint, units = policy.checkpoint, policy.checkpoint.statistics
    assert values.shape == (policy.config.model.critic_ensemble, 2)
    scaled = (observation - units.observation_mean) / units.observation_std  # actions lie in [-1, 1] already
    np.testing.assert_allclose(
        values, checkpoint.agent.values(checkpoint.state.params, scaled, action, context), rtol=1e-4
    )
    assert np.abs(values[:, 0] - policy.values(observation[::-1], action, context)[:, 0]).max() > 1e-4


def test_gymnasium_loop(policy):
    def positions(agent):
        env = gym.wrappers.TimeLimit(Plane(), 6)
        observation, _ = env.reset()
        visited, truncated = [], False
        while not truncated:
            observation, _, _, truncated, _ = env.step(agent(observation))
            visited.append(observation)
        return np.array(visited)

    context = policy.prompt(HERE)
    first = positions(policy.as_gymnasium_agent(context, seed=3))
    assert first.shape == (6, 2)
    np.testing.assert_array_equal(first, positions(policy.as_gymnasium_agent(context, seed=3)))
    assert np.abs(first - positions(policy.as_gymnasium_agent(context, seed=4))).max() > 1e-3
    agent = policy.as_gymnasium_agent(context, steps=2, guidance={"text": 1.2})
    assert agent(np.zeros(2)).shape == (2,)


def test_an_agent_draws_fresh_noise_at_every_call(policy, monkeypatch):
    monkeypatch.setattr("llmdpd_jax.policy.KEYS_AT_A_TIME", 3)
    keys = []

    def act(observation, key):
        keys.append(tuple(int(number) for number in key))
        return np.zeros(2)

    agent = GymnasiumAgent(policy, act, seed=0, execute=1)
    for _ in range(7):
        agent(np.zeros(2))
    assert len(set(keys)) == 7


def test_an_agent_takes_the_entry_observation_of_a_dict(policy):
    context, observation = policy.prompt(HERE), np.array([0.2, -0.1])
    plain, mapped = (policy.as_gymnasium_agent(context) for _ in range(2))
    seen = {"observation": observation, "achieved_goal": observation, "desired_goal": -observation}
    np.testing.assert_array_equal(plain(observation), mapped(seen))


def test_an_agent_acts_in_one_task(policy):
    with pytest.raises(UserError, match="context: of 2 tasks"):
        policy.as_gymnasium_agent(policy.prompt([HERE, HERE]))


def test_a_warm_start_takes_the_steps_that_are_left(policy):
    observation, context, key = np.zeros((3, 2)), policy.prompt(HERE), jax.random.key(5)
    warm = np.full((3, 2), 0.5), 0.4
    left = policy.act(observation, context, key, warm_start=warm)
    np.testing.assert_array_equal(left, policy.act(observation, context, key, warm_start=warm, steps=2))


@pytest.mark.parametrize("best_of", [0, -2])
def test_fewer_than_one_action_cannot_be_drawn(policy, best_of):
    with pytest.raises(UserError, match=f"best_of: {best_of} is out of range"):
        policy.act(np.zeros((3, 2)), policy.prompt(HERE), jax.random.key(0), best_of=best_of)


@pytest.mark.parametrize("guidance", [{"text": float("nan")}, {"critic": float("inf")}, {"trajectory": None}])
def test_weights_of_guidance_are_finite_numbers(policy, guidance):
    with pytest.raises(UserError, match=f"guidance: the weight of {next(iter(guidance))!r}"):
        policy.act(np.zeros((3, 2)), policy.prompt(HERE), jax.random.key(0), guidance=guidance)


def test_a_key_may_be_given_as_its_numbers(policy):
    observation, context, key = np.zeros((3, 2)), policy.prompt(HERE), jax.random.key(5)
    expected = policy.act(observation, context, key)
    for numbers in (jax.random.key_data(key), np.asarray(jax.random.key_data(key))):
        np.testing.assert_array_equal(policy.act(observation, context, numbers), expected)


def test_brax_policy_in_a_scan(policy):
    """In one compiled scan it does what `act` does step by step, for one task and for a batch with a context each."""
    env, steps, key = get_family("point_robot").make_env(), 5, jax.random.key(6)

    def roll_out(reset, step, act):
        def one(state, key):
            action, extras = act(state.obs, key)
            assert extras == {}
            state = step(state, action)
            return state, state.obs

        return jax.jit(lambda: jax.lax.scan(one, reset, jax.random.split(key, steps))[1])()

    def step_by_step(state, step, context, **options):
        positions = []
        for k in jax.random.split(key, steps):
            state = step(state, policy.act(state.obs, context, k, **options))
            positions.append(state.obs)
        return np.stack(positions)

    goals = jnp.array([[0.3, -0.4], [-0.8, 0.7]])
    one, two = env.reset_task(key, goals[0]), jax.vmap(env.reset_task)(jax.random.split(key), goals)
    contexts = policy.prompt([HERE, THERE])
    context = jax.tree.map(lambda x: x[0], contexts)
    found = roll_out(one, env.step, policy.as_brax_policy(context, steps=2))
    np.testing.assert_allclose(found, step_by_step(one, env.step, context, steps=2), atol=1e-5)
    step = jax.vmap(env.step)
    found = roll_out(two, step, policy.as_brax_policy(contexts))
    np.testing.assert_allclose(found, step_by_step(two, step, contexts), atol=1e-5)
    assert found.shape == (steps, 2, 2) and np.abs(found[:, 0] - found[:, 1]).max() > 1e-2

    act = policy.as_brax_policy(context)
    keys = jax.random.split(key, 3)
    each, _ = jax.vmap(act)(SEEN[:3], keys)
    np.testing.assert_allclose(each, [policy.act(SEEN[i], context, keys[i]) for i in range(3)], atol=1e-5)
    raw, _ = act(SEEN[0], jax.random.key_data(keys[0]))  # as Brax's own training hands keys over
    np.testing.assert_allclose(raw, each[0], atol=1e-5)
