"""The student and critic-weighted cloning against numbers worked out by hand; what critics have to say in acting."""

import jax
import numpy as np
import pytest
from networks import randomise
from test_acting import draw, make_context
from test_update import assert_trees_close, constant_critic, constant_denoiser, gradient, largest

from llmdpd_jax.diffusion.guidance import Guidance
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.denoiser import MLPDenoiser

KEY = jax.random.key(3)
OFF = dict.fromkeys(("eta", "critic_weight", "model_weight", "alignment_weight", "consistency_weight"), 0.0)


@pytest.fixture(scope="module")
def constants(student):
    """A denoiser that answers 0.25, a student 0.4, slow copies -0.6 and -0.7."""

    def answer(tree, denoiser, student):
        networks = {"denoiser": denoiser, "student": student}
        return {**tree, **{name: constant_denoiser(tree[name], action) for name, action in networks.items()}}

    return student.state.replace(
        params=answer(student.state.params, 0.25, 0.4), ema=answer(student.state.ema, -0.6, -0.7)
    )


# --- student ---------------------------------------------------------------------------------------------------------


def test_distillation_in_plain_numbers(student, constants):
    metrics = student.update(constants, student.batch, student.text, **OFF, cloning_weight=0.3)[1]
    cloning = student.batch.weights[..., None] * (0.25 - student.batch.actions) ** 2
    assert metrics["loss/cloning"] == pytest.approx(np.mean(cloning), rel=1e-4)
    distilled = 0.3 * (0.4 - 0.25) ** 2 / metrics["spread"]
    expected = metrics["loss/cloning"] + metrics["loss/behaviour"] + distilled
    assert metrics["loss/total"] == pytest.approx(expected, rel=1e-4)


def test_a_student_beyond_the_bounds_is_called_back(student, constants):
    """Its value is that of the clipped action, whose gradient is 0; distillation sees how far beyond it is."""
    far = constants.replace(params={**constants.params, "student": constant_denoiser(constants.params["student"], 3.0)})
    metrics = student.update(far, student.batch, student.text, **OFF, cloning_weight=0.3)[1]
    distilled = 0.3 * (3.0 - 0.25) ** 2 / metrics["spread"]
    expected = metrics["loss/cloning"] + metrics["loss/behaviour"] + distilled
    assert metrics["loss/total"] == pytest.approx(expected, rel=1e-4)
    edge = constants.replace(
        params={**constants.params, "student": constant_denoiser(constants.params["student"], 1.0)}
    )
    at_edge = student.update(edge, student.batch, student.text)[1]["value/policy"]
    assert metrics["value/policy"] == pytest.approx(at_edge, rel=1e-5)


def test_the_students_slow_copy_acts_in_the_critics_target(student, constants):
    def critic_loss(**actions):
        ema = {n: constant_denoiser(constants.ema[n], a) for n, a in actions.items()}
        state = constants.replace(ema={**constants.ema, **ema})
        return student.update(state, student.batch, student.text)[1]["loss/critic"]

    assert critic_loss(denoiser=0.9) == pytest.approx(critic_loss(), rel=1e-6)
    assert abs(critic_loss(student=0.9) - critic_loss()) > 1e-3


def test_only_cloning_teaches_the_denoiser(student):
    def grads(**weights):
        return gradient(student.update(student.state, student.batch, student.text, **weights)[0])

    base, no_q, no_distillation = grads(), grads(eta=0.0), grads(cloning_weight=0.0)
    assert_trees_close(no_q["denoiser"], base["denoiser"], rtol=1e-4, atol=1e-6)
    assert_trees_close(no_distillation["denoiser"], base["denoiser"], rtol=1e-4, atol=1e-6)
    for other in (no_q, no_distillation):
        assert largest(jax.tree.map(np.subtract, other["student"], base["student"])) > 1e-3
    # Without either nothing teaches the student, and it teaches neither prompts nor critics.
    assert largest(grads(eta=0.0, cloning_weight=0.0)["student"]) == 0.0
    for part in ("prompt_encoder", "critic"):
        assert_trees_close(no_q[part], base[part], rtol=1e-4, atol=1e-6)


def test_the_student_learns_to_do_in_one_call_what_the_chain_does(student):
    """Distillation alone; the denoiser is not taught, for the batch's actions are what it answers."""
    state, still = student.state, {**OFF, "cloning_weight": 1.0}
    state = state.replace(
        params={
            **state.params,
            "student": randomise(state.params["student"], 5, 0.05),
            "denoiser": constant_denoiser(state.params["denoiser"], 0.5),
        }
    )
    batch = student.batch.replace(actions=np.full_like(student.batch.actions, 0.5))

    def away(state):
        noise = draw(8, 20, 2)
        k = np.full(20, 3.0)
        out = MLPDenoiser(16, 2, "mish").apply(
            {"params": state.params["student"]}, noise, k, draw(9, 20, 3), np.zeros((20, 8), np.float32)
        )
        return np.abs(out - 0.5).mean()

    before = away(state)
    for seed in range(60):
        state, _ = student.update(state, batch, student.text, seed, **still)
    assert away(state) < 0.5 * before


def test_a_student_acts_in_one_call(student):
    params = {**student.state.acting, "student": randomise(student.state.params["student"], 6, 0.2)}
    observation, context = draw(0, 7, 3), make_context()
    noise = jax.random.normal(KEY, (7, 2))

    def asked(context):
        denoiser = MLPDenoiser(16, 2, "mish")
        return denoiser.apply({"params": params["student"]}, noise, np.full(7, 3.0), observation, context).clip(-1, 1)

    action = student.agent.act(params, observation, context, KEY, sampler="student")
    np.testing.assert_allclose(action, asked(context.full), atol=1e-5)
    guided = student.agent.act(params, observation, context, KEY, sampler="student", guidance=Guidance(2.0, 1.0))
    expected = (2.0 * asked(context.full) - asked(context.without_text)).clip(-1, 1)
    np.testing.assert_allclose(guided, expected, atol=1e-5)


def test_who_has_no_student_says_so(tiny):
    with pytest.raises(UserError, match=r"'student' needs a policy that has one.*agent\.policy_improvement=student"):
        tiny.agent.act(tiny.state.acting, draw(0, 3), make_context(), KEY, sampler="student")


# --- critic-weighted cloning -----------------------------------------------------------------------------------------


def constant_value(params, value):
    out = {"kernel": np.zeros_like(params["out"]["kernel"]), "bias": np.full_like(params["out"]["bias"], value)}
    return {**params, "out": out}


@pytest.mark.parametrize(("v", "value_loss", "preference"), [(1.0, 0.7, np.e), (3.0, 0.3, 1 / np.e)])
def test_weights_and_values_in_plain_numbers(weighted, v, value_loss, preference):
    """Slow critics of 2, 4 and 3 say 2 of every logged action: 1 more, or 1 less, than the state's value."""
    state = weighted.state.replace(
        params={
            **weighted.state.params,
            "value": constant_value(weighted.state.params["value"], v),
            "critic": constant_critic(weighted.state.params["critic"], [0.0, 0.0, 0.0]),
        },
        target_critic=constant_critic(weighted.state.target_critic, [2.0, 4.0, 3.0]),
    )
    metrics = weighted.update(state, weighted.batch, weighted.text, **{**OFF, "eta": 0.7})[1]
    assert metrics["loss/policy"] == pytest.approx(preference * metrics["loss/cloning"], rel=1e-4)
    expected = 0.7 * metrics["loss/policy"] + value_loss + metrics["loss/behaviour"]
    assert metrics["loss/total"] == pytest.approx(expected, rel=1e-4)
    # Critics follow the value of the next state, not that of some action there.
    target = weighted.batch.rewards + 0.9 * np.where(weighted.batch.terminations, 0.0, v)
    assert metrics["loss/critic"] == pytest.approx(np.mean(target**2), rel=1e-4)


def test_better_actions_are_cloned_more(weighted):
    """Weights differ by advantage: with a state value that is 0 and random critics, they do."""
    base = weighted.update(weighted.state, weighted.batch, weighted.text)[1]
    assert base["loss/policy"] != pytest.approx(base["loss/cloning"], rel=1e-2)


def test_advantages_do_not_teach_critics_or_values_through_the_weights(weighted):
    def grads(**weights):
        return gradient(weighted.update(weighted.state, weighted.batch, weighted.text, **weights)[0])

    with_policy, without = grads(), grads(eta=0.0)
    for part in ("value", "critic"):
        assert_trees_close(with_policy[part], without[part], rtol=1e-4, atol=1e-6)
        assert largest(without[part]) > 1e-3
    assert largest(without["denoiser"]) == 0.0 and largest(with_policy["denoiser"]) > 1e-3


# --- critics in acting -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acting(tiny):
    """Parameters whose actions vary within the bounds."""
    return {**tiny.state.acting, "denoiser": randomise(tiny.state.params["denoiser"], seed=4, scale=0.2)}


def test_the_best_of_some_is_the_one_the_critics_choose(tiny, acting):
    observation, context = draw(0, 7, 3), make_context()
    repeated = np.broadcast_to(observation, (6, 7, 3))
    keys = jax.random.split(KEY, 6)  # one for each draw
    every = np.asarray(tiny.agent.act(acting, repeated, context, keys, sampler="ancestral"))
    values = np.asarray(tiny.agent.values(acting, repeated, every, context)).min(0)
    best = tiny.agent.act(acting, observation, context, KEY, sampler="ancestral", best_of=6)
    assert best.shape == (7, 2)
    np.testing.assert_allclose(best, every[values.argmax(0), np.arange(7)], atol=1e-5)
    assert (values.max(0) > values.min(0) + 1e-4).all()


def test_the_critics_gradient_raises_values(tiny, acting):
    observation, context = draw(0, 50, 3), make_context()

    @jax.jit
    def value(weight):
        action = tiny.agent.act(acting, observation, context, KEY, guidance=Guidance(critic=weight))
        return tiny.agent.values(acting, observation, action, context).mean()

    plain, some, more = (float(value(weight)) for weight in (0.0, 30.0, 300.0))
    assert plain + 1e-3 < some < more - 1e-3
    unguided = tiny.agent.act(acting, observation, context, KEY)
    assert plain == pytest.approx(float(tiny.agent.values(acting, observation, unguided, context).mean()), abs=1e-5)


def test_a_warm_start_is_where_a_chain_begins(tiny, acting):
    observation, context = draw(0, 7, 3), make_context()

    def act(start):
        return tiny.agent.act(acting, observation, context, KEY, steps=1, warm_start=(start, 1 / 3))

    one, other = act(np.full((7, 2), 0.5, np.float32)), act(np.full((7, 2), -0.5, np.float32))
    assert np.abs(one - other).max() > 1e-2
    with pytest.raises(UserError, match="sampler steps: 2 is out of range"):
        tiny.agent.act(acting, observation, context, KEY, steps=2, warm_start=(one, 1 / 3))
