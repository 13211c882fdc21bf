"""A transformer that plans chunks, from data to acting; chunks that do not fit are refused before anything is done."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import make_trajectory

from llmdpd_jax import load_policy
from llmdpd_jax.cli.main import main
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import load_results
from llmdpd_jax.evaluation.rollout import make_rollout
from llmdpd_jax.tasks.point_robot import PointRobot

pytestmark = pytest.mark.slow  # programs of their own are compiled

HERE = "Go to (0.3, 0.4)"
CHUNK = 3


@pytest.fixture(scope="module")
def run(made_world):
    return made_world.folder / "chunked"


@pytest.fixture
def policy(world, run, load_lively_policy):
    """Trained once; actions vary."""
    changes = {"agent__chunk": CHUNK, "model__denoiser": "dit", "model__heads": 2}
    assert main(["train", *world.config(**changes), f"--out={run}"]) == 0
    return load_lively_policy(run)


class Leaving(PointRobot):
    """Ends where the point has gone farther than 0.15 along either axis."""

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(done=jnp.float32(jnp.abs(state.obs).max() > 0.15))


def test_train_evaluate_and_load(policy, run):
    """On a horizon of 20 steps, all of a chunk or two of its three actions."""
    assert policy.chunk == CHUNK and policy.action_size == 2
    for execute in (0, 2):
        assert main(["evaluate", str(run), f"--execute={execute}"]) == 0
        rows = load_results(run).rows
        assert {row.sampler for row in rows} == {f"ddim-5, {execute or 3} of 3 actions"}
        assert all(np.isfinite(row.returns).all() for row in rows)

    observation, context = np.zeros((4, 2), np.float32), load_policy(run).prompt(HERE)
    plan = load_policy(run).act(observation, context, jax.random.key(0))
    assert plan.shape == (4, CHUNK, 2) and np.abs(plan).max() <= 1.0
    values = policy.values(observation, plan, context)
    assert values.shape == (2, 4)
    assert np.abs(values - policy.values(observation, -plan, context)).max() > 1e-5


def test_chunks_are_in_the_environments_units(policy):
    """A warm start that is all there is: noised but little, the plan comes back."""
    context, plan = policy.prompt(HERE), np.float32([[0.9, -0.9], [0.1, 0.2], [-0.5, 0.5]])
    near = policy.act(np.zeros(2), context, jax.random.key(0), steps=1, warm_start=(plan, 0.2))
    far = policy.act(np.zeros(2), context, jax.random.key(0), steps=1, warm_start=(-plan, 0.2))
    assert near.shape == plan.shape and np.abs(near - far).max() > 1e-3


@pytest.mark.parametrize(("execute", "env"), [(2, PointRobot()), (3, Leaving())], ids=["open end", "ending"])
def test_rollouts_carry_out_what_is_planned(policy, execute, env):
    """Against a loop in Python, on a horizon of 7 steps that neither 2 nor 3 divides."""
    horizon, tasks, episodes = 7, 2, 3
    calls = -(-horizon // execute)
    goals = np.float32([[0.5, -0.5], [-0.2, 0.8]])
    parameters, size = policy.params, policy.config.model.context_width
    vectors = jax.random.normal(jax.random.key(5), (1, tasks, episodes, size))
    trajectory = make_trajectory(batch=(tasks, episodes), observation_size=2)
    yes, no, key = np.ones(1, bool), np.zeros(1, bool), jax.random.key(9)
    rollout = make_rollout(policy, env, horizon, "ddim", 2, execute=execute)
    returns, observations = rollout(parameters, None, vectors, trajectory, yes, no, goals, key)
    assert returns.shape == (1, tasks, episodes) and observations.shape == (1, tasks, episodes, horizon + 1, 2)

    agent, rows = policy.checkpoint.agent, (tasks * episodes,)
    told = vectors.reshape(-1, size)
    context = agent.fuse(parameters, told, told, np.ones(rows, bool), np.zeros(rows, bool))
    act = jax.jit(partial(policy.act_function, sampler="ddim", steps=2))
    key_reset, key_act = jax.random.split(key)
    goal = np.repeat(goals, episodes, axis=0)
    state = jax.vmap(env.reset_task)(jax.random.split(key_reset, rows), goal)
    seen, total, running, done = [state.obs], np.zeros(rows), np.ones(rows, bool), 0
    for key_call in jax.random.split(key_act, calls):
        for action in np.swapaxes(act(parameters, state.obs, context, key_call), 0, 1)[:execute]:
            if done < horizon:
                state = jax.vmap(env.step)(state, action)
                total += np.where(running, state.reward, 0.0)
                seen.append(np.where(running[:, None], state.obs, np.nan))
                running, done = running & (np.asarray(state.done) == 0), done + 1
    np.testing.assert_allclose(returns.reshape(rows), total, atol=1e-4)
    np.testing.assert_allclose(observations.reshape(*rows, horizon + 1, 2), np.stack(seen, 1), atol=1e-4)
    assert np.isnan(observations).any() == isinstance(env, Leaving)


def test_a_gymnasium_agent_asks_again_after_some_actions(policy):
    context, observation = policy.prompt(HERE), np.float32([0.1, 0.2])
    plans = [policy.act(observation, context, jax.random.fold_in(jax.random.key(4), i)) for i in range(3)]

    def steps(agent, count=5):
        return np.stack([agent(observation) for _ in range(count)])

    whole = policy.as_gymnasium_agent(context, seed=4)
    np.testing.assert_allclose(steps(whole), np.concatenate(plans)[:5], atol=1e-5)
    whole.reset()
    np.testing.assert_allclose(whole(observation), plans[2][0], atol=1e-5)
    two = policy.as_gymnasium_agent(context, seed=4, execute=2)
    np.testing.assert_allclose(steps(two), np.concatenate([p[:2] for p in plans])[:5], atol=1e-5)
    for execute in (4, -1):
        with pytest.raises(UserError, match=f"execute: {execute} is out of range; this policy plans 3 at once"):
            policy.as_gymnasium_agent(context, execute=execute)


def test_a_brax_policy_takes_the_first_action(policy):
    context, observation, key = policy.prompt(HERE), np.float32([[0.1, 0.2], [0.3, 0.4]]), jax.random.key(4)
    action, extras = policy.as_brax_policy(context)(observation, key)
    assert action.shape == (2, 2) and extras == {}
    np.testing.assert_allclose(action, policy.act(observation, context, key)[:, 0], atol=1e-6)


def test_what_does_not_fit_is_refused(policy, world, run, tmp_path, capsys):
    def complaint(*arguments, **changes):
        assert main([*arguments, *(world.config(**changes) if changes else []), f"--out={tmp_path / 'out'}"]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    message = complaint("train", agent__chunk=21)
    assert "agent.chunk: 21 is more than the 20 steps of the shortest episode, of task 'train-00'" in message
    assert "choose at most 20" in message
    networks = {"model__denoiser": "dit", "model__heads": 2, "agent__policy_improvement": "student"}
    message = complaint("train", agent__chunk=2, train__distill_from=str(run), **networks)
    assert "acts by chunks of 3; agent.chunk is 2 and must be the same" in message
    assert "execute: 4 is out of range" in complaint("evaluate", str(run), "--execute=4")
