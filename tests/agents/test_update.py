"""One update against numbers worked out by hand: losses, targets, whom each loss teaches, slow copies."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from networks import make_text, make_trajectory, randomise

from llmdpd_jax.agents.llmdpd import alignment_loss, consistency_loss, make_agent
from llmdpd_jax.config import default_config
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.critic import ConditionedMLP

WEIGHTS = ("cloning_weight", "eta", "critic_weight", "model_weight", "alignment_weight", "consistency_weight")


def constant_denoiser(params, action):
    """The denoiser made to answer `action` (a number) to everything."""
    out = {"kernel": np.zeros_like(params["out"]["kernel"]), "bias": np.full_like(params["out"]["bias"], action)}
    return {**params, "out": out}


def constant_critic(params, values):
    """The critics made to answer these numbers to everything."""
    out = params["members"]["out"]
    out = {"kernel": np.zeros_like(out["kernel"]), "bias": np.float32(values)[:, None]}
    return {"members": {**params["members"], "out": out}}


def gradient(state):
    """The gradient of the first update: Adam's first moment is a tenth of it (nothing is clipped)."""
    unravel = ravel_pytree(state.params)[1]
    moments = unravel(optax.tree_utils.tree_get(state.opt_state, "mu"))
    return jax.tree.map(lambda m: np.asarray(m) / (1 - 0.9), moments)


def largest(tree):
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def done(tiny):
    return tiny.update(tiny.state, tiny.batch, tiny.text)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_critic_loss_in_plain_numbers(tiny):
    """Critics that answer 1, 1.5 and 0.5; their slow copies 2, 4 and 3; rewards 1 and -1, one transition an end."""
    state = tiny.state.replace(
        params={**tiny.state.params, "critic": constant_critic(tiny.state.params["critic"], [1.0, 1.5, 0.5])},
        target_critic=constant_critic(tiny.state.target_critic, [2.0, 4.0, 3.0]),
    )
    rewards = np.full((3, 4), -1.0, np.float32)
    rewards[0, 0] = rewards[0, 1] = 1.0
    terminations = np.zeros((3, 4), bool)
    terminations[0, 0] = True
    batch = dataclasses.replace(tiny.batch, rewards=rewards, terminations=terminations)
    metrics = tiny.update(state, batch, tiny.text)[1]
    # An end is worth its reward, 1. All others bootstrap, the last step before a time limit too: 0.9 times the
    # least slow value, 2, is 1.8: 2.8 for the other reward of 1 and 0.8 for the ten rewards of -1.
    squares = [(q - target) ** 2 for q in (1.0, 1.5, 0.5) for target in [1.0, 2.8, *[0.8] * 10]]
    assert metrics["loss/critic"] == pytest.approx(np.mean(squares), rel=1e-5)
    assert metrics["value/mean"] == pytest.approx(1.0, rel=1e-5)


def test_losses_by_hand(tiny):
    """Wiring: which parameters, actions, observations and contexts each loss uses."""
    agent, batch, mine, slow = tiny.agent, tiny.batch, 0.25, -0.6
    state = tiny.state.replace(
        params={**tiny.state.params, "denoiser": constant_denoiser(tiny.state.params["denoiser"], mine)},
        ema={**tiny.state.ema, "denoiser": constant_denoiser(tiny.state.ema["denoiser"], slow)},
    )
    metrics = tiny.update(state, batch, tiny.text)[1]

    params, yes, no = state.params, np.ones(3, bool), np.zeros(3, bool)
    key_read = jax.random.split(jax.random.key(7), 5)[3]  # texts are read with noise in training

    @jax.jit
    def read(text, trajectory):
        vectors = agent.read_text(params, text, key_read), agent.read_trajectory(params, trajectory)
        return jax.tree.map(lambda c: c[:, None], agent.fuse(params, *vectors, yes, yes))

    context, values_of = read(tiny.text, batch.prompt), jax.jit(agent.values)

    def q(critic, observations, actions):
        return np.asarray(values_of({"critic": critic}, observations, actions, context))

    next_values = q(state.target_critic, batch.next_observations, np.full((3, 4, 2), slow, np.float32))
    target = batch.rewards + 0.9 * np.where(batch.terminations, 0.0, next_values.min(0))
    values = q(params["critic"], batch.observations, batch.actions)
    assert values.shape == (3, 3, 4)
    assert metrics["value/mean"] == pytest.approx(values.mean(), rel=1e-4)
    assert metrics["loss/critic"] == pytest.approx(np.mean((values - target) ** 2), rel=1e-4)

    value = q(params["critic"], batch.observations, np.full((3, 4, 2), mine, np.float32))[0]
    assert metrics["value/policy"] == pytest.approx(value.mean(), rel=1e-4)
    assert metrics["loss/policy"] == pytest.approx(-value.mean() / np.abs(value).mean(), rel=1e-4)

    weights = batch.weights[..., None]  # better episodes are cloned more
    assert metrics["loss/cloning"] == pytest.approx(np.mean(weights * (mine - batch.actions) ** 2), rel=1e-4)

    model = jax.jit(ConditionedMLP(4, 8, 2).apply)
    vectors = agent.read_text(params, tiny.text, key_read), agent.read_trajectory(params, batch.prompt)
    told = [agent.fuse(params, *vectors, *flags).full[:, None] for flags in ((yes, no), (no, yes), (yes, yes))]
    predicted = np.stack([model({"params": params["model"]}, batch.observations, batch.actions, c) for c in told])
    outcome = np.concatenate([batch.rewards[..., None], batch.next_observations - batch.observations], -1)
    squares = (predicted - outcome) ** 2
    halves = [squares[..., 0].mean(), squares[..., 1:].mean()]  # the reward, and the observation
    assert metrics["loss/model"] == pytest.approx(np.mean(halves), rel=1e-4)

    # What is logged is predicted without seeing it, and from both prompts.
    mean_action = ConditionedMLP(2, 8, 2).apply({"params": params["behaviour"]}, batch.observations, None, told[2])
    mean_action = np.asarray(mean_action)
    squares = weights * (mean_action - batch.actions) ** 2
    assert metrics["loss/behaviour"] == pytest.approx(np.mean(squares), rel=1e-4)


def test_the_width_of_behaviour_is_told_apart_from_not_knowing_the_task(tiny):
    """It is measured with both prompts, whatever dropout leaves of them, and the denoising loss cannot widen it."""
    told, untold = (
        tiny.update(tiny.state, tiny.batch, tiny.text, text_dropout=dropout, trajectory_dropout=dropout)[1]
        for dropout in (0.0, 1.0)
    )
    assert told["loss/behaviour"] == pytest.approx(untold["loss/behaviour"], rel=1e-6)
    none, much = (
        gradient(tiny.update(tiny.state, tiny.batch, tiny.text, cloning_weight=weight)[0])["behaviour"]
        for weight in (0.0, 0.3)
    )
    assert_trees_close(none, much, rtol=1e-5, atol=1e-7)
    assert largest(none) > 1e-3


def test_narrow_data_are_cloned_closely(tiny):
    """Actions that are predicted exactly: the denoising loss counts by its weight over the smallest variance."""
    out = tiny.state.params["behaviour"]["out"]
    out = {"kernel": np.zeros_like(out["kernel"]), "bias": np.full_like(out["bias"], 0.5)}
    behaviour = {**tiny.state.params["behaviour"], "out": out}
    state = tiny.state.replace(params={**tiny.state.params, "behaviour": behaviour})
    for actions, spread in ((np.full((3, 4, 2), 0.5), 1e-4), (np.full((3, 4, 2), 0.3), 0.04)):
        batch = dataclasses.replace(tiny.batch, actions=actions.astype(np.float32))
        weights = {weight: float(weight == "cloning_weight") for weight in WEIGHTS}
        metrics = tiny.update(state, batch, tiny.text, **weights)[1]
        assert metrics["spread"] == pytest.approx(spread, rel=1e-5)
        expected = metrics["loss/cloning"] / spread + metrics["loss/behaviour"]
        assert metrics["loss/total"] == pytest.approx(expected, rel=1e-5)


def test_the_total_is_the_weighted_sum(done):
    metrics = done[1]
    names = ("cloning", "policy", "critic", "model", "behaviour", "alignment", "consistency")
    parts = [metrics[f"loss/{name}"] for name in names]
    assert metrics["spread"] == metrics["loss/behaviour"] > 0.01
    weights = [0.3 / metrics["spread"], 0.7, 1.1, 1.3, 1.0, 0.6, 0.9]
    assert metrics["loss/total"] == pytest.approx(np.dot(parts, weights), rel=1e-5)


def test_alignment_by_hand():
    """Three groups, the first two of one task; lengths do not count, cosines over the temperature 0.1 do."""
    text = np.float32([[2, 0], [4, 3], [0, 3]])
    trajectory = np.float32([[1, 0], [0.6, 0.8], [0, 5]])
    cosines = np.array([[1, 0.6, 0], [0.8, 0.96, 0.6], [0, 0.8, 1]])

    def one_way(scores):
        log_shares = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return -np.mean([log_shares[0, :2].mean(), log_shares[1, :2].mean(), log_shares[2, 2]])

    expected = (one_way(cosines / 0.1) + one_way(cosines.T / 0.1)) / 2
    assert alignment_loss(text, trajectory, np.array([4, 4, 9])) == pytest.approx(expected, rel=1e-5)
    # Told apart, the second trajectory is no longer the first text's.
    assert alignment_loss(text, trajectory, np.array([4, 5, 9])) != pytest.approx(expected, rel=1e-2)


def test_consistency_by_hand():
    """Groups 0 and 2 are of one task, 1, 3 and 4 of another: four pairs, each in both orders."""
    contexts = np.float32([[0, 0], [1, 1], [2, 0], [1, 3], [4, 1]])
    distances = [4 / 2, 4 / 2, 9 / 2, (9 + 4) / 2]
    assert consistency_loss(contexts, np.array([7, 3, 7, 3, 3])) == pytest.approx(np.mean(distances), rel=1e-6)
    assert consistency_loss(contexts, np.arange(5)) == 0.0


def test_the_cloning_loss_of_velocity_by_hand(full_chain):
    """A denoiser that answers 0.1 to everything: (0.1 - alpha noise + sigma a)² on average over steps and noise."""
    state = full_chain.state.replace(
        params={**full_chain.state.params, "denoiser": constant_denoiser(full_chain.state.params["denoiser"], 0.1)}
    )
    losses = [full_chain.update(state, full_chain.batch, full_chain.text, s)[1]["loss/cloning"] for s in range(200)]
    alphas, sigmas = make_schedule("vp", 3).at(np.array([1, 2, 3]) / 3)
    actions, weights = full_chain.batch.actions, full_chain.batch.weights[..., None]
    expected = np.mean([weights * ((0.1 + s * actions) ** 2 + a**2) for a, s in zip(alphas, sigmas, strict=True)])
    assert np.mean(losses) == pytest.approx(expected, rel=0.04)


# --- one step of the optimiser ---------------------------------------------------------------------------------------


def test_init_starts_the_slow_copies_at_the_parameters(tiny):
    state = jax.jit(tiny.agent.init)(jax.random.key(0), tiny.batch, tiny.text)
    assert state.step == 0
    assert_trees_close(state.target_critic, state.params["critic"], rtol=0)
    assert_trees_close(state.ema, {name: state.params[name] for name in ("prompt_encoder", "denoiser")}, rtol=0)
    assert set(state.params) == {"prompt_encoder", "denoiser", "critic", "model", "behaviour"}
    assert largest(optax.tree_utils.tree_get(state.opt_state, "mu")) == 0.0


def test_slow_copies_follow_by_their_rates(tiny, done):
    old, new = tiny.state, done[0]
    assert new.step == 1
    assert_trees_close(
        new.target_critic,
        jax.tree.map(lambda slow, fast: 0.8 * slow + 0.2 * fast, old.target_critic, new.params["critic"]),
        atol=1e-6,
    )
    fast = {name: new.params[name] for name in old.ema}
    assert_trees_close(new.ema, jax.tree.map(lambda slow, fast: 0.9 * slow + 0.1 * fast, old.ema, fast), atol=1e-6)


def test_adam_moves_each_parameter_by_the_learning_rate(tiny, done):
    grads = gradient(done[0])
    assert done[1]["grad_norm"] == pytest.approx(np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads))), rel=1e-4)

    def check(old, new, g):
        clear = np.abs(g) > 1e-4  # far above Adam's epsilon
        np.testing.assert_allclose((new - old)[clear], -1e-3 * np.sign(g)[clear], atol=2e-6)

    jax.tree.map(check, tiny.state.params, done[0].params, grads)
    assert all(largest(g) > 1e-4 for g in grads.values())


def test_update_is_deterministic_in_its_key(tiny, done):
    assert_trees_close(tiny.update(tiny.state, tiny.batch, tiny.text, 7), done, rtol=0)
    other = tiny.update(tiny.state, tiny.batch, tiny.text, 8)
    assert abs(other[1]["loss/cloning"] - done[1]["loss/cloning"]) > 1e-4


# --- whom each loss teaches ------------------------------------------------------------------------------------------

# one_step rebuilds the action with the context that cloning learns too; full_chain holds the context fixed.
TAUGHT = {
    "cloning_weight": {"denoiser", "prompt_encoder"},
    "eta": {"denoiser", "prompt_encoder"},
    "critic_weight": {"critic", "prompt_encoder"},
    "model_weight": {"model", "prompt_encoder"},
    "alignment_weight": {"prompt_encoder"},
    "consistency_weight": {"prompt_encoder"},
}


def gradient_of(tiny, weight):
    """The gradient of one loss alone."""
    weights = {w: float(w == weight) for w in WEIGHTS}
    return gradient(tiny.update(tiny.state, tiny.batch, tiny.text, **weights)[0])


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_loss_teaches_only_its_own(tiny, weight):
    taught = {name for name, tree in gradient_of(tiny, weight).items() if largest(tree) > 0.0}
    assert taught == TAUGHT[weight] | {"behaviour"}  # whose loss always counts, and teaches nothing else


def test_a_detached_context_is_taught_by_outcomes_alone(detached):
    for weight in WEIGHTS:
        teaches = largest(gradient_of(detached, weight)["prompt_encoder"]) > 0.0
        assert teaches == (weight in ("model_weight", "alignment_weight", "consistency_weight")), weight


def test_steps_left_out_of_the_trajectory_prompt_do_not_count(tiny):
    """With nearly every step left out, an update depends far less often on the first step of the first prompt."""
    observations = tiny.batch.prompt.observations.copy()
    observations[0, 0] += 1.0
    changed = dataclasses.replace(tiny.batch, prompt=tiny.batch.prompt.replace(observations=observations))

    def reads(dropout):
        pairs = [
            [tiny.update(tiny.state, b, tiny.text, s, prompt_step_dropout=dropout)[1]["loss/model"] for s in range(60)]
            for b in (tiny.batch, changed)
        ]
        return np.mean(np.array(pairs[0]) != np.array(pairs[1]))

    assert reads(0.0) == 1.0
    assert 0.2 < reads(0.6) < 0.7


def test_full_chain_teaches_the_denoiser_alone(full_chain):
    taught = {name for name, tree in gradient_of(full_chain, "eta").items() if largest(tree) > 0.0}
    assert taught == {"denoiser", "behaviour"}


@pytest.mark.parametrize("name", ["tiny", "full_chain"])
def test_the_weight_of_the_policy_loss_is_nothing_to_the_critic(request, name):
    tiny = request.getfixturevalue(name)
    weak, strong = (gradient(tiny.update(tiny.state, tiny.batch, tiny.text, eta=eta)[0]) for eta in (0.0, 50.0))
    for part in ("critic", "model"):
        assert_trees_close(weak[part], strong[part], rtol=1e-5, atol=1e-7)
    assert np.abs(weak["denoiser"]["out"]["bias"] - strong["denoiser"]["out"]["bias"]).max() > 0.1


@pytest.mark.parametrize("name", ["tiny", "full_chain"])
def test_policy_gradient_is_that_of_finite_differences(request, name):
    tiny = request.getfixturevalue(name)
    start = tiny.state.params["denoiser"]

    def update(denoiser):
        state = tiny.state.replace(params={**tiny.state.params, "denoiser": denoiser})
        return tiny.update(state, tiny.batch, tiny.text, **{w: float(w == "eta") for w in WEIGHTS})

    state, metrics = update(start)
    # The loss is the value over its own size, which is held fixed: the gradient of the value follows from both.
    scale = metrics["value/policy"] / metrics["loss/policy"]
    grads = jax.tree.map(lambda g: g * scale, gradient(state)["denoiser"])
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    assert norm > 1e-2
    steepest = jax.tree.map(lambda g: g / norm, grads)
    for direction in (steepest, randomise(grads, 1, 0.1), randomise(grads, 2, 0.1)):
        ahead, behind = (
            update(jax.tree.map(lambda p, d: p + step * d, start, direction))[1]["value/policy"]  # noqa: B023
            for step in (0.005, -0.005)
        )
        expected = sum(float(np.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True))
        assert (ahead - behind) / 0.01 == pytest.approx(expected, rel=0.02, abs=2e-4)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_without_prompts_the_update_does_not_depend_on_them(tiny):
    # Alignment, consistency and the heads for outcomes and actions read both prompts whatever is dropped: off here.
    off = {"model_weight": 0.0, "cloning_weight": 0.0, "alignment_weight": 0.0, "consistency_weight": 0.0}
    dropout = {"text_dropout": 1.0, "trajectory_dropout": 1.0, **off}
    first = tiny.update(tiny.state, tiny.batch, tiny.text, **dropout)
    batch = dataclasses.replace(tiny.batch, prompt=make_trajectory(9, (3,)))
    other = tiny.update(tiny.state, batch, make_text(9, (3,), numbers=(4.0, 2.0)), **dropout)
    for name in (
        "loss/model",
        "loss/behaviour",
        "loss/alignment",
        "loss/consistency",
        "spread",
        "loss/total",
        "grad_norm",
    ):
        assert first[1].pop(name) != other[1].pop(name)
    assert_trees_close(other[1], first[1], rtol=0)
    for name in set(first[0].params) - {"behaviour"}:
        assert_trees_close(other[0].params[name], first[0].params[name], rtol=0)
    readers = gradient(first[0])["prompt_encoder"]
    assert largest(readers["text_reader"]) == largest(readers["trajectory_reader"]) == 0.0
    assert largest(readers["null"]) > 0.0

    # Of cloning only the weight depends on them, through the width of the behaviour.
    alone = {**dropout, "cloning_weight": 0.3, "eta": 0.0, "critic_weight": 0.0}
    taught = []
    for told, text in ((tiny.batch, tiny.text), (batch, make_text(9, (3,), numbers=(4.0, 2.0)))):
        state, metrics = tiny.update(tiny.state, told, text, **alone)
        taught.append(jax.tree.map(lambda g, spread=metrics["spread"]: g * spread, gradient(state)["denoiser"]))
    assert_trees_close(*taught, rtol=1e-4, atol=1e-6)
    assert largest(taught[0]) > 1e-3


def test_prompts_are_dropped_independently_at_their_rates(tiny):
    """Which of 200 updates depend on the text of the first group, and which on its trajectory."""

    def losses(batch, text):
        dropout = {"text_dropout": 0.25, "trajectory_dropout": 0.6}
        return np.array([tiny.update(tiny.state, batch, text, s, **dropout)[1]["loss/critic"] for s in range(200)])

    def first_group_from(prompt, other):
        return jax.tree.map(lambda x, y: np.concatenate([y[:1], x[1:]]), prompt, other)

    plain = losses(tiny.batch, tiny.text)
    reads_text = losses(tiny.batch, first_group_from(tiny.text, make_text(9, (3,)))) != plain
    prompt = first_group_from(tiny.batch.prompt, make_trajectory(9, (3,)))
    reads_trajectory = losses(dataclasses.replace(tiny.batch, prompt=prompt), tiny.text) != plain
    assert reads_text.mean() == pytest.approx(0.75, abs=0.1)
    assert reads_trajectory.mean() == pytest.approx(0.4, abs=0.1)
    assert (reads_text & reads_trajectory).mean() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("diffusion.parameterisation", "score"),
        ("agent.policy_improvement", "two_step"),
        ("model.denoiser", "unet"),
    ],
)
def test_bad_choices_are_user_errors(field, value):
    config = default_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"{field}: '{value}' is unknown; choose one of"):
        make_agent(config, 3, 2)
