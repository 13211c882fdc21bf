"""What the context depends on, and what it must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import make_text, make_trajectory, random_params

from llmdpd_jax.models.prompt_encoder import PromptEncoder, TextReader, TrajectoryReader
from llmdpd_jax.prompts.table import LINEAR_UP_TO

WIDTH = 8


def with_params(module, *inputs):
    """A jitted function of the inputs, with parameters drawn at random."""
    params = random_params(module, *inputs)
    return jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))


def pad(prompt, extra, value):
    """The prompt with `extra` more masked tokens or steps, filled with `value`."""
    axis = prompt.mask.ndim - 1

    def longer(x):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, extra)
        return np.pad(x, widths, constant_values=0 if x.dtype == bool else np.asarray(value).astype(x.dtype))

    return jax.tree.map(longer, prompt)


@pytest.fixture(scope="module")
def text_reader():
    return with_params(TextReader(WIDTH), make_text())


@pytest.fixture(scope="module")
def trajectory_reader():
    return with_params(TrajectoryReader(WIDTH, layers=1), make_trajectory())


@pytest.mark.parametrize("value", [0.0, 9.0])
def test_padding_changes_nothing(text_reader, trajectory_reader, value):
    for read, prompt in ((text_reader, make_text(batch=(3,))), (trajectory_reader, make_trajectory(batch=(3,)))):
        vector = read(prompt)
        assert vector.shape == (3, WIDTH) and np.abs(vector).max() > 0.01
        np.testing.assert_allclose(read(pad(prompt, 7, value)), vector, atol=1e-5)


def test_what_stands_in_padding_changes_nothing(text_reader, trajectory_reader):
    text, trajectory = make_text(), make_trajectory()
    garbage = dataclasses.replace(
        text,
        states=np.where(text.mask[:, None], text.states, np.float32(50.0)),
        numbers=np.where(text.mask, text.numbers, np.float32(-3.0)),
        number_index=np.where(text.mask, text.number_index, np.int32(2)),
    )
    np.testing.assert_allclose(text_reader(garbage), text_reader(text), atol=1e-5)
    garbage = jax.tree.map(
        lambda x: np.where(trajectory.mask.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(50.0)), trajectory
    ).replace(mask=trajectory.mask)
    np.testing.assert_allclose(trajectory_reader(garbage), trajectory_reader(trajectory), atol=1e-5)


def test_every_real_part_of_a_prompt_is_read(text_reader, trajectory_reader):
    for read, prompt in ((text_reader, make_text()), (trajectory_reader, make_trajectory())):
        before = read(prompt)
        for field in dataclasses.fields(prompt):
            value = getattr(prompt, field.name)
            if value.dtype == np.float32:
                changed = value.copy()
                changed[1] += 0.5
                changed = dataclasses.replace(prompt, **{field.name: changed})
                assert np.abs(read(changed) - before).max() > 1e-3, field.name
    text = make_text()
    swapped = dataclasses.replace(text, number_index=np.int32([-1, 1, 0, -1, -1, -1]))
    assert np.abs(text_reader(swapped) - text_reader(text)).max() > 1e-3  # "(0.3, -0.7)" is not "(-0.7, 0.3)"


def test_a_batch_is_read_entry_by_entry(text_reader, trajectory_reader):
    for read, prompt in ((text_reader, make_text(batch=(2, 3))), (trajectory_reader, make_trajectory(batch=(2, 3)))):
        vectors = read(prompt)
        assert vectors.shape == (2, 3, WIDTH)
        np.testing.assert_allclose(vectors[1, 2], read(jax.tree.map(lambda x: x[1, 2], prompt)), atol=1e-5)


def test_the_numbers_channel_and_the_states_can_be_left_out():
    text = make_text()
    other_states = dataclasses.replace(text, states=text.states + text.mask[:, None])
    other_numbers = dataclasses.replace(text, numbers=text.numbers * 2.0)

    def differs(read, prompt):
        return np.abs(read(prompt) - read(text)).max() > 1e-3

    numbers_only = with_params(TextReader(WIDTH, use_llm=False), text)
    assert differs(numbers_only, other_numbers)
    np.testing.assert_array_equal(numbers_only(other_states), numbers_only(text))
    llm_only = with_params(TextReader(WIDTH, use_numbers=False), text)
    assert differs(llm_only, other_states)
    np.testing.assert_array_equal(llm_only(other_numbers), llm_only(text))


def test_rewards_can_be_left_out():
    trajectory = make_trajectory()
    without = with_params(TrajectoryReader(WIDTH, use_rewards=False, layers=1), trajectory)
    np.testing.assert_array_equal(without(trajectory.replace(rewards=trajectory.rewards + 1.0)), without(trajectory))
    changed = trajectory.replace(actions=trajectory.actions + 1.0)
    assert np.abs(without(changed) - without(trajectory)).max() > 1e-3


def test_text_by_hand():
    """Without attention layers and with one real token, which spells a number."""
    reader = TextReader(4, slots=2, dials=3, choices=2, layers=0)
    text = make_text(length=2, real=2, width=3, numbers=(0.3,))
    text = dataclasses.replace(text, mask=np.array([False, True]))
    params = random_params(reader, text)

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name].get("bias", 0.0)

    token = dense("states", text.states[1]) + params["ordinal"]["embedding"][0]
    token = (token - token.mean()) / np.sqrt(token.var() + 1e-6) * params["norm"]["scale"] + params["norm"]["bias"]
    values = np.einsum("d,dqh->qh", token, params["pool"]["values"]["kernel"]) + params["pool"]["values"]["bias"]
    pooled = values.reshape(4) @ params["pool"]["out"]["kernel"] + params["pool"]["out"]["bias"]
    # A slot takes the number or stays empty, whose score is 0.
    taken = 1.0 / (1.0 + np.exp(-dense("slot_scores", token)))
    slots = taken * np.tanh(dense("slot_factors", token)) * 0.3
    # The number is shared out among the dials; what the last score gets is given to none.
    shares = np.exp(dense("dial_scores", token))
    shares = shares[:-1] / shares.sum()

    def choices(name):
        scores = np.exp(np.einsum("d,dnc->nc", token, params[name]["kernel"]) + params[name]["bias"])
        return scores / scores.sum(axis=-1, keepdims=True)

    # All [dials]: by how much a dial turns, from which direction towards which.
    turn = choices("rate_scores") @ np.exp(0.3j * params["rates"])
    start, end = (choices(name) @ np.exp(1j * params["directions"]) for name in ("start_scores", "end_scores"))
    dials = shares * (turn.real * start + turn.imag * end)
    numbers = np.concatenate([slots, dials.real, dials.imag])
    np.testing.assert_allclose(reader.apply({"params": params}, text), pooled + dense("numbers", numbers), atol=1e-5)


def test_slots_are_linear_in_the_numbers():
    """What the networks learn of train tasks' numbers holds between them."""
    text, reader = make_text(), TextReader(WIDTH)
    params = random_params(reader, text)

    def read(factor):
        return reader.apply({"params": params}, dataclasses.replace(text, numbers=text.numbers * np.float32(factor)))

    assert np.abs(read(1.0) - read(0.0)).max() > 1e-2
    np.testing.assert_allclose(read(3.0) - read(0.0), 3.0 * (read(1.0) - read(0.0)), rtol=1e-4, atol=1e-5)


def test_dials_come_round():
    """A number that turns one dial reads the same a full turn of it farther."""
    reader, text = TextReader(WIDTH, slots=1, dials=2, choices=3), make_text(numbers=(0.3,))
    params = random_params(reader, text)

    def always(name, bias):
        return {name: {"kernel": 0.0 * params[name]["kernel"], "bias": np.float32(bias)}}

    params = {
        **params,
        "slot_factors": jax.tree.map(np.zeros_like, params["slot_factors"]),
        "excess": jax.tree.map(np.zeros_like, params["excess"]),
        "excess_penalty": np.zeros_like(params["excess_penalty"]),
        **always("dial_scores", [40.0, -40.0, -40.0]),
        **always("rate_scores", [[-40.0, 40.0, -40.0]] * 2),
    }

    def read(turns):
        farther = np.float32(turns * 2 * np.pi / params["rates"][1])
        return reader.apply(
            {"params": params},
            dataclasses.replace(text, numbers=np.where(text.number_index >= 0, text.numbers + farther, 0.0)),
        )

    assert np.abs(read(0.5) - read(0.0)).max() > 1e-2
    np.testing.assert_allclose(read(1.0), read(0.0), atol=1e-4)


def test_a_number_of_two_tokens_is_given_to_a_dial_once():
    """Where every token says the same of it."""
    reader, text = TextReader(WIDTH, slots=1, dials=2, layers=0), make_text(numbers=(0.3, 0.3))
    params = random_params(reader, text)
    params = {**params, "slot_factors": jax.tree.map(np.zeros_like, params["slot_factors"])}
    params["pool"] = jax.tree.map(np.zeros_like, params["pool"])
    states = np.array(text.states)
    states[2] = states[1]
    one = dataclasses.replace(text, states=states, number_index=np.int32([-1, 0, -1, -1, -1, -1]))
    two = dataclasses.replace(text, states=states, number_index=np.int32([-1, 0, 0, -1, -1, -1]))
    read = [reader.apply({"params": params}, prompt) for prompt in (one, two)]
    assert np.abs(read[0]).max() > 1e-2
    np.testing.assert_allclose(*read, atol=1e-5)


def test_training_blurs_the_states_and_leaves_words_out():
    text = make_text(batch=(400,))
    reader = TextReader(WIDTH, noise=1e-6, words_dropout=0.75)
    params = random_params(reader, text)
    plain = reader.apply({"params": params}, text)
    trained = np.asarray(reader.apply({"params": params}, text, jax.random.key(0)))
    same = np.abs(trained - plain).max(-1) < 1e-3
    assert same.mean() == pytest.approx(0.25, abs=0.08)
    silent = {**params, "pool": jax.tree.map(np.zeros_like, params["pool"])}
    np.testing.assert_allclose(trained[~same], reader.apply({"params": silent}, text)[~same], atol=1e-3)
    # Where there is no number the words are all there is.
    wordless = dataclasses.replace(text, number_index=np.full_like(text.number_index, -1))
    np.testing.assert_allclose(
        reader.apply({"params": params}, wordless, jax.random.key(0)),
        reader.apply({"params": params}, wordless),
        atol=1e-3,
    )
    noisy = TextReader(WIDTH, noise=0.5, words_dropout=0.0).apply({"params": params}, text, jax.random.key(0))
    assert np.std(noisy, axis=0).min() > 1e-2  # equal texts, each blurred its own way
    again = TextReader(WIDTH, noise=0.5, words_dropout=0.0).apply({"params": params}, text, jax.random.key(0))
    np.testing.assert_array_equal(noisy, again)


def test_gradients_are_finite_where_a_text_is_all_number_and_padding():
    reader, text = TextReader(WIDTH), make_text(real=3, numbers=(0.3, -0.7, 0.1))
    text = dataclasses.replace(text, number_index=np.int32([0, 1, 2, -1, -1, -1]))
    params = random_params(reader, text)
    grads = jax.grad(lambda p: jnp.sum(reader.apply({"params": p}, text, jax.random.key(0)) ** 2))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_more_numbers_than_ordinals_share_the_last_one():
    reader, text = TextReader(WIDTH, max_numbers=2), make_text(numbers=(0.1, 0.2, 0.3), real=6)
    params = random_params(reader, text)
    same = dataclasses.replace(text, number_index=np.int32([-1, 0, 1, 1, -1, -1]))
    np.testing.assert_array_equal(*(reader.apply({"params": params}, prompt) for prompt in (text, same)))


def test_numbers_turn_hardly_any_dial_before_training():
    reader, text = TextReader(WIDTH, dials=3), make_text()
    bias = reader.init(jax.random.key(0), text)["params"]["dial_scores"]["bias"]
    assert jax.nn.softmax(bias)[-1] > 0.9


def test_a_number_far_larger_than_most_shows_in_its_token():
    """Without factors a number's size reaches the vector only as far as it exceeds the linear range."""
    reader, text = TextReader(WIDTH, slots=1), make_text()
    params = random_params(reader, text)
    params["slot_factors"] = jax.tree.map(np.zeros_like, params["slot_factors"])

    def read(number):
        numbers = np.where(text.number_index >= 0, np.float32(number), 0.0)
        return reader.apply({"params": params}, dataclasses.replace(text, numbers=numbers))

    np.testing.assert_array_equal(read(LINEAR_UP_TO), read(0.5))
    assert np.abs(read(LINEAR_UP_TO + 1.0) - read(0.5)).max() > 1e-2


def test_numbers_far_larger_than_most_fill_hardly_any_slot_before_training():
    reader, text = TextReader(WIDTH, layers=0), make_text(numbers=(LINEAR_UP_TO + 2.0,))
    params = random_params(reader, text)
    params["slot_scores"] = jax.tree.map(np.zeros_like, params["slot_scores"])
    params["excess_penalty"] = reader.init(jax.random.key(0), text)["params"]["excess_penalty"]

    def filled(text):
        empty = {**params, "slot_factors": jax.tree.map(np.zeros_like, params["slot_factors"])}
        return np.abs(reader.apply({"params": params}, text) - reader.apply({"params": empty}, text)).max()

    small = dataclasses.replace(text, numbers=text.numbers * np.float32(LINEAR_UP_TO / (LINEAR_UP_TO + 2.0)))
    # With scores of 0 a number takes half of a slot, with -4 one part in 55.
    assert filled(text) < 0.1 * filled(small)


def test_mean_pooling_by_hand():
    """The mean of the real tokens' states through one linear map, whatever their order."""
    reader = TextReader(WIDTH, use_numbers=False, pooling="mean")
    text = make_text()
    params = random_params(reader, text)
    mean = text.states[text.mask].mean(axis=0)
    expected = mean @ params["states"]["kernel"] + params["states"]["bias"]
    np.testing.assert_allclose(reader.apply({"params": params}, text), expected, atol=1e-5)
    assert set(params) == {"states"}


# --- fusion ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encode():
    text, trajectory, flag = make_text(batch=(1,)), make_trajectory(batch=(1,)), np.ones(1, bool)
    return with_params(PromptEncoder(WIDTH, trajectory_layers=1), text, trajectory, flag, flag)


@pytest.mark.parametrize(("has_text", "has_trajectory"), [(True, False), (False, True), (False, False), (True, True)])
def test_absent_prompts_are_ignored_entirely(encode, has_text, has_trajectory):
    flags = np.array([has_text]), np.array([has_trajectory])
    texts = [make_text(seed, (1,), numbers=numbers) for seed, numbers in ((0, (0.3, -0.7)), (1, (5.0,)))]
    trajectories = [make_trajectory(seed, (1,), real=real) for seed, real in ((0, 3), (1, 5))]
    context = encode(texts[0], trajectories[0], *flags)
    other_text = np.abs(encode(texts[1], trajectories[0], *flags) - context).max()
    other_trajectory = np.abs(encode(texts[0], trajectories[1], *flags) - context).max()
    assert (other_text > 1e-3) if has_text else (other_text == 0.0)
    assert (other_trajectory > 1e-3) if has_trajectory else (other_trajectory == 0.0)


def test_flags_differ_within_a_batch(encode):
    text, trajectory = make_text(batch=(4,)), make_trajectory(batch=(4,))
    flags = np.array([True, True, False, False]), np.array([True, False, True, False])
    contexts = encode(text, trajectory, *flags)
    for i in range(4):
        alone = encode(*(jax.tree.map(lambda x: x[i : i + 1], p) for p in (text, trajectory, *flags)))  # noqa: B023
        np.testing.assert_allclose(contexts[i], alone[0], atol=1e-5)
    assert min(np.abs(contexts[i] - contexts[j]).max() for i in range(4) for j in range(i)) > 1e-2


def test_fusion_by_hand():
    encoder = PromptEncoder(3)
    text, trajectory = np.array([0.5, -1.0, 2.0]), np.array([1.5, 0.2, -0.4])
    params = {
        "null": np.array([[0.1, 0.2, 0.3], [-0.3, 0.0, 0.6]]),
        "confidence": {"kernel": np.array([[0.4], [0.0], [0.2]])},
    }

    def by_hand(vectors, penalties):
        vectors = np.array(vectors)
        confidence = np.exp(vectors @ [0.4, 0.0, 0.2] + penalties)
        return (confidence[:, None] * vectors).sum(0) / confidence.sum()

    null = np.asarray(params["null"])
    cases = {
        (True, True): by_hand([text, trajectory], [0, 0]),
        (True, False): by_hand([text, null[1]], [0, -4]),  # a null vector counts little beside a prompt
        (False, True): by_hand([null[0], trajectory], [-4, 0]),
        (False, False): by_hand(null, [-4, -4]),
    }
    for flags, expected in cases.items():
        fused = encoder.apply({"params": params}, text, trajectory, *map(jnp.array, flags), method="fuse")
        np.testing.assert_allclose(fused, expected, atol=1e-5)
