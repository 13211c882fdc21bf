"""Actions: shapes, bounds, keys, guidance."""

import jax
import numpy as np
import pytest
from networks import make_text, make_trajectory, randomise

from llmdpd_jax.agents.diffusion_ql import Context
from llmdpd_jax.diffusion.guidance import Guidance
from llmdpd_jax.diffusion.process import to_x0
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.denoiser import MLPDenoiser
from llmdpd_jax.models.prompt_encoder import PromptEncoder

KEY = jax.random.key(3)
WIDTH = 8


@pytest.fixture(scope="module")
def params(tiny):
    """Parameters whose actions vary, and mostly lie within the bounds."""
    return {**tiny.state.params, "denoiser": randomise(tiny.state.params["denoiser"], seed=4, scale=0.2)}


@pytest.fixture(scope="module")
def act(tiny):
    return jax.jit(tiny.agent.act, static_argnames=("sampler", "steps"))


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_context(*batch):
    return Context(*(draw(seed, *batch, WIDTH) for seed in (10, 11, 12)))


@pytest.mark.parametrize("guidance", [None, Guidance(2.0, 0.5)], ids=["plain", "guided"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_shape(act, params, batch, guidance):
    observation, context = draw(0, *batch, 3), make_context()
    action = act(params, observation, context, KEY, guidance=guidance)
    assert action.shape == (*batch, 2) and np.isfinite(action).all()
    # One context for all is the context repeated for each, however many there are.
    tiled = jax.tree.map(lambda c: np.broadcast_to(c, (*batch, WIDTH)), context)
    np.testing.assert_allclose(act(params, observation, tiled, KEY, guidance=guidance), action, atol=1e-5)
    if batch:  # entries differ by observation and noise
        assert np.abs(np.diff(action, axis=-2)).max() > 1e-2


def test_same_key_same_action(act, params):
    observation, context = draw(0, 7, 3), make_context()
    first = act(params, observation, context, KEY)
    np.testing.assert_array_equal(act(params, observation, context, jax.random.key(3)), first)
    assert np.abs(act(params, observation, context, jax.random.key(4)) - first).max() > 1e-2


def test_actions_are_within_the_bounds(act, params):
    wild = {**params, "denoiser": randomise(params["denoiser"], scale=3.0)}
    observation, context = draw(0, 100, 3), make_context()
    for sampler in ("ddim", "ancestral"):
        for guidance in (None, Guidance(5.0, -3.0)):
            action = np.asarray(act(wild, observation, context, KEY, sampler=sampler, guidance=guidance))
            assert np.abs(action).max() <= 1.0 and (np.abs(action) == 1.0).any() and action.std() > 0.1


@pytest.mark.parametrize("name", ["tiny", "full_chain"])
def test_one_step_by_hand(request, params, name):
    """From noise at step K straight to the clean action, for x0 and for velocity."""
    agent = request.getfixturevalue(name).agent
    observation, context, schedule = draw(0, 7, 3), make_context(), make_schedule("vp", 3)
    x = jax.random.normal(jax.random.split(KEY)[0], (7, 2))
    denoiser = MLPDenoiser(16, 2, "mish")
    k, t = np.full(7, 3.0), np.ones(7)

    def expected(params):
        output = denoiser.apply({"params": params["denoiser"]}, x, k, observation, context.full)
        return to_x0("x0" if name == "tiny" else "velocity", schedule, output, x, t).clip(-1, 1)

    action = jax.jit(agent.act, static_argnames="steps")(params, observation, context, KEY, steps=1)
    np.testing.assert_allclose(action, jax.jit(expected)(params), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "student"])
def test_without_noise_there_is_one_action(request, params, name):
    """Also of the ancestral chain, which adds noise on its way; noise of any other scale gives others."""
    agent = request.getfixturevalue(name)
    sampler = "student" if name == "student" else "ancestral"
    student = randomise(agent.state.params["student"], seed=6) if name == "student" else None
    given = {**params, "student": student}
    observation, context = draw(0, 5, 3), make_context()

    def act(key, temperature):
        return agent.agent.act(given, observation, context, jax.random.key(key), sampler, temperature=temperature)

    np.testing.assert_array_equal(act(0, 0.0), act(1, 0.0))
    assert np.abs(act(0, 0.0) - act(0, 1.0)).max() > 1e-3
    assert np.abs(act(0, 1.0) - act(1, 1.0)).max() > 1e-3
    with pytest.raises(UserError, match=r"temperature: -1 is out of range; noise is scaled by a number of 0 or more"):
        act(0, -1)


def test_guidance_of_one_is_none(act, params):
    observation, context = draw(0, 7, 3), make_context()
    for sampler in ("ddim", "ancestral"):
        plain = act(params, observation, context, KEY, sampler=sampler)
        guided = act(params, observation, context, KEY, sampler=sampler, guidance=Guidance(1.0, 1.0))
        np.testing.assert_allclose(guided, plain, atol=1e-5)


def test_guidance_of_zero_acts_without_the_prompt(act, params):
    observation, context = draw(0, 7, 3), make_context()
    plain = act(params, observation, context, KEY)
    for guidance, left in (
        (Guidance(0.0, 1.0), context.without_text),
        (Guidance(1.0, 0.0), context.without_trajectory),
    ):
        expected = act(params, observation, Context(left, left, left), KEY)
        assert np.abs(expected - plain).max() > 1e-2
        np.testing.assert_allclose(act(params, observation, context, KEY, guidance=guidance), expected, atol=1e-5)


def test_a_guidance_weight_per_observation(act, params):
    observation, context = draw(0, 3, 3), make_context()
    weights = np.float32([0.0, 1.0, 3.0])
    mixed = act(params, observation, context, KEY, guidance=Guidance(weights, np.ones(3, np.float32)))
    for i, weight in enumerate(weights):
        alone = act(params, observation, context, KEY, guidance=Guidance(weight, 1.0))
        np.testing.assert_allclose(mixed[i], alone[i], atol=1e-5)


def test_sweeping_guidance_compiles_once(tiny, params):
    traces = []

    @jax.jit
    def act(guidance):
        traces.append(1)
        return tiny.agent.act(params, draw(0, 3), make_context(), KEY, guidance=guidance)

    actions = {tuple(act(Guidance(text, trajectory)).tolist()) for text in (0.0, 1.0, 2.0) for trajectory in (0.5, 1.0)}
    assert len(traces) == 1 and len(actions) == 6


def test_bad_choices_are_user_errors(tiny, params):
    with pytest.raises(UserError, match=r"sampler steps: 4 is out of range.* 1 to 3"):
        tiny.agent.act(params, draw(0, 3), make_context(), KEY, steps=4)
    with pytest.raises(UserError, match="'euler' is unknown"):
        tiny.agent.act(params, draw(0, 3), make_context(), KEY, sampler="euler")


def test_contexts_with_and_without_each_prompt(tiny, params):
    """What acting fuses in two calls is what training encodes in one."""
    agent, text, trajectory = tiny.agent, make_text(batch=(4,)), make_trajectory(batch=(4,))
    has_text, has_trajectory = np.array([True, True, False, False]), np.array([True, False, True, False])

    @jax.jit
    def fused(has_text, has_trajectory):
        vectors = agent.read_text(params, text), agent.read_trajectory(params, trajectory)
        return agent.fuse(params, *vectors, has_text, has_trajectory)

    encoder = PromptEncoder(WIDTH, text_layers=0, trajectory_layers=0)

    @jax.jit
    def encode(has_text, has_trajectory):
        return encoder.apply({"params": params["prompt_encoder"]}, text, trajectory, has_text, has_trajectory)

    context, none = fused(has_text, has_trajectory), np.zeros(4, bool)
    np.testing.assert_allclose(context.full, encode(has_text, has_trajectory), atol=1e-5)
    np.testing.assert_allclose(context.without_text, encode(none, has_trajectory), atol=1e-5)
    np.testing.assert_allclose(context.without_trajectory, encode(has_text, none), atol=1e-5)
    assert np.abs(context.full - context.without_text)[:2].max(axis=1).min() > 1e-2
    assert np.abs(context.full - context.without_trajectory)[[0, 2]].max(axis=1).min() > 1e-2
