"""Descriptions say exactly one goal, and held-out wordings are of another build."""

import itertools
import re

import pytest

from llmdpd_jax.tasks.point_robot import point_robot
from llmdpd_jax.tasks.point_robot_wordings import HELD_OUT_TEMPLATES, train_templates
from llmdpd_jax.tasks.wording import decimal, short, side, spelled


def test_numbers_are_written_as_their_names_say():
    assert decimal(-0.42) == "-0.42" and decimal(0.3, 3) == "0.300" and decimal(0.31, plus=True) == "+0.31"
    assert decimal(-0.0) == "0.00" and decimal(-0.001, plus=True) == "+0.00"
    assert [short(v) for v in (0.3, -1.0, 0.42, 0.0, 10.0)] == ["0.3", "-1", "0.42", "0", "10"]
    assert spelled(-0.42) == "minus zero point four two" and spelled(1.0) == "one point zero zero"
    assert side(-0.1, "up", "down") == "down" and side(0.0, "up", "down") == "up"


def test_descriptions_of_a_known_goal():
    texts = point_robot().descriptions({"goal_x": 0.31, "goal_y": -0.42}, held_out=False)
    assert len(texts) == len(set(texts)) == len(train_templates()) > 250
    for expected in (
        "Navigate to position (0.31, -0.42)",
        "Go to x = 0.31 and y = -0.42.",
        "Go to y = -0.42 and x = 0.31.",
        "robot.move_to(y minus zero point four two, x zero point three one); wait until arrived; return success",
        "The charger can be found using right by 0.31, and, if the old floor plan is still to be trusted, also down by "
        "0.42.",
        "goal: [0.310, -0.420]",
    ):
        assert expected in texts
    held_out = point_robot().descriptions({"goal_x": 0.31, "goal_y": -0.42}, held_out=True)
    assert len(set(held_out)) == len(HELD_OUT_TEMPLATES) >= 5
    assert "Waypoint (0.31, -0.42) is your final destination." in held_out
    assert not set(held_out) & set(texts)


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Which axis and sign each word gives to the number it goes with.
SIDES = {
    **dict.fromkeys(("right", "east"), ("x", 1)),
    **dict.fromkeys(("left", "west"), ("x", -1)),
    **dict.fromkeys(("up", "above", "north"), ("y", 1)),
    **dict.fromkeys(("down", "below", "south"), ("y", -1)),
}
AXES = {
    **dict.fromkeys(("x", "horizontal", "goal_x", "abscissa", "sideways"), "x"),
    **dict.fromkeys(("y", "vertical", "goal_y", "ordinate"), "y"),
}


def read(text):
    """The goal a description states, read without knowing the templates."""
    words = re.sub(r"\(x, y\) = ", "", text.lower())
    for digit, word in enumerate(DIGITS):
        words = re.sub(rf"\b{word}\b", str(digit), words)
    words = re.sub(r"(\d) point (\d) (\d)", r"\1.\2\3", words)
    words = re.sub(r"minus (?=\d)", "-", words)
    tokens = re.findall(r"[+-]?\d+(?:\.\d+)?|[a-z_]+", words)
    values = [(i, float(t)) for i, t in enumerate(tokens) if re.match(r"[+-]?\d", t)]
    assert len(values) == 2, text
    sides = [SIDES[t] for t in tokens if t in SIDES]
    if sides:
        assert len(sides) == 2 and all(value >= 0 for _, value in values), text
        return {axis: sign * value for (axis, sign), (_, value) in zip(sides, values, strict=True)}
    axes = [AXES[t] for t in tokens if t in AXES] or ["x", "y"]
    assert sorted(axes) == ["x", "y"], text
    return {axis: value for axis, (_, value) in zip(axes, values, strict=True)}


@pytest.mark.parametrize("held_out", [False, True])
def test_each_description_determines_the_goal(held_out):
    values = (-1.0, -0.5, -0.42, -0.05, 0.0, 0.05, 0.31, 0.9, 1.0)
    for x, y in itertools.product(values, values):
        for text in point_robot().descriptions({"goal_x": x, "goal_y": y}, held_out=held_out):
            assert read(text) == {"x": x, "y": y}, text


def pairs_of_words(template):
    """Neighbouring words of a template, its fields left out: what a sentence is built of."""
    words = re.findall(r"[a-z_]+", re.sub(r"\{.*?\}", " ", template.lower()))
    return set(itertools.pairwise(["^", *words, "$"]))


def test_held_out_wordings_are_of_another_build():
    for (name, held_out), (other, train) in itertools.product(HELD_OUT_TEMPLATES.items(), train_templates().items()):
        one, two = pairs_of_words(held_out), pairs_of_words(train)
        assert len(one & two) / len(one | two) < 0.2, f"{name} is built like {other}"


def test_train_wordings_cover_each_way_of_saying_a_number():
    """Held-out wordings are new sentences, not new words for a number or a sign."""
    fields = {field for template in train_templates().values() for field in re.findall(r"\{(.*?)\}", template)}
    assert {field for t in HELD_OUT_TEMPLATES.values() for field in re.findall(r"\{(.*?)\}", t)} <= fields
