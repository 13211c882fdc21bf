"""Descriptions say exactly one goal, and held-out wordings are of another build."""

import dataclasses
import itertools
import math
import re
import string

import numpy as np
import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.numbers import read_numbers
from llmdpd_jax.tasks import dynamics as dynamics_tasks
from llmdpd_jax.tasks import maze_gaps as gap_tasks
from llmdpd_jax.tasks.point_robot import point_robot
from llmdpd_jax.tasks.point_robot_wordings import HELD_OUT_TEMPLATES
from llmdpd_jax.tasks.reacher_goal import reacher_goal
from llmdpd_jax.tasks.wording import (
    UNITS,
    Parts,
    Quantity,
    Writing,
    compose,
    decimal,
    short,
    side,
    spelled,
    with_asides,
)
from llmdpd_jax.tasks.wordings import direction, dynamics, gaps, point, velocity, way
from llmdpd_jax.tasks.wordings.asides import AFTER, BEFORE
from llmdpd_jax.tasks.wordings.direction import direction_phrases, direction_wordings
from llmdpd_jax.tasks.wordings.dynamics import dynamics_wordings
from llmdpd_jax.tasks.wordings.gaps import gap_wordings
from llmdpd_jax.tasks.wordings.point import point_wordings
from llmdpd_jax.tasks.wordings.velocity import velocity_wordings
from llmdpd_jax.tasks.wordings.way import way_wordings


def test_numbers_are_written_as_their_names_say():
    assert decimal(-0.42) == "-0.42" and decimal(0.3, 3) == "0.300" and decimal(0.31, plus=True) == "+0.31"
    assert decimal(-0.0) == "0.00" and decimal(-0.001, plus=True) == "+0.00"
    assert [short(v) for v in (0.3, -1.0, 0.42, 0.0, 10.0)] == ["0.3", "-1", "0.42", "0", "10"]
    assert spelled(-0.42) == "minus zero point four two" and spelled(1.0) == "one point zero zero"
    assert side(-0.1, "up", "down") == "down" and side(0.0, "up", "down") == "up"


def test_descriptions_of_a_known_goal():
    texts = point_robot().descriptions({"goal_x": 0.31, "goal_y": -0.42}, held_out=False)
    assert len(texts) == len(set(texts)) == len(point_wordings().train) > 250
    for expected in (
        "Navigate to position (0.31, -0.42)",
        "goal: [+0.31, -0.42]",
        "Go to x = 0.310 metres and y = -0.420 metres.",
        "Go to y = -0.420 metres and x = 0.310 metres.",
        "Go to exactly 4.20e-01 downward and exactly 3.10e-01 to the right.",
        "Just 0.31 meters to the right and 0.42 meters down, and you are there.",
    ):
        assert expected in texts
    held_out = point_robot().descriptions({"goal_x": 0.31, "goal_y": -0.42}, held_out=True)
    assert len(set(held_out)) == len(HELD_OUT_TEMPLATES) >= 5
    assert "Waypoint (0.31, -0.42) is your final destination." in held_out
    assert not set(held_out) & set(texts)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_a_quantity_is_written_as_its_format_says():
    x = Quantity(-0.4219)
    formats = {
        "": "-0.42",
        "3": "-0.422",
        "size": "0.42",
        "1 cm": "-42.2",
        "0 size cm": "42",
        "words": "minus zero point four two",
        "0 words cm": "minus forty-two",
        "2 exp": "-4.22e-01",
        "2 times": "-4.22x10^-1",
        "east|west": "west",
    }
    assert {spec: format(x, spec) for spec in formats} == formats
    assert f"{Quantity(0.5):short}, {Quantity(20.0):short}, {Quantity(20.0):0 short}, {Quantity(0.31):+}" == (
        "0.5, 20, 20, +0.31"
    )
    assert (
        f"{Quantity(math.pi):0 words deg}, {Quantity(1.9):0 words deg}"
        == "one hundred and eighty, one hundred and nine"
    )
    assert f"{Quantity(-0.001):2 size} {Quantity(-0.0):2 exp}" == "0.00 0.00e+00"
    with pytest.raises(UserError, match="'parsec' in the format '2 parsec'"):
        f"{x:2 parsec}"
    with pytest.raises(UserError, match="below a thousand"):
        spelled(1000.0)


def test_parts_are_composed_in_every_order_and_written_in_turn():
    parts = Parts(
        frames=("Go {a}, {b}.", "{a} & {b}"), phrases=(("x <x>", "y <y>"), ("<|x|> {x:e|w}", "<|y|> {y:n|s}"))
    )
    assert compose(parts, [Writing("2"), Writing("1 cm", " cm")]) == (
        "Go x {x:2}, y {y:2}.",
        "Go y {y:2}, x {x:2}.",
        "Go {x:1 cm size} cm {x:e|w}, {y:1 cm size} cm {y:n|s}.",
        "Go {y:1 cm size} cm {y:n|s}, {x:1 cm size} cm {x:e|w}.",
        "x {x:2} & y {y:2}",
        "y {y:2} & x {x:2}",
        "{x:1 cm size} cm {x:e|w} & {y:1 cm size} cm {y:n|s}",
        "{y:1 cm size} cm {y:n|s} & {x:1 cm size} cm {x:e|w}",
    )
    assert len(compose(parts, [Writing("2")], every=2)) == 4
    three = Parts(frames=("{a}{b}{c}", "{a},{b},{c}"), phrases=(("x", "y", "z"),))
    assert compose(three, [Writing("2")]) == ("xyz", "z,y,x")  # one order of the six, another one each time
    assert compose(Parts((), (), whole=("<x> m",)), [Writing("3")]) == ("{x:3} m",)


def test_every_other_sentence_has_a_remark_before_or_behind_it():
    assert with_asides(("a", "b", "c", "d", "e")) == ("a", f"{BEFORE[0]} b", "c", f"d {AFTER[0]}", "e")
    assert len(set(BEFORE)) == len(BEFORE) > 90 and len(set(AFTER)) == len(AFTER) > 90


# --- sets of wordings ------------------------------------------------------------------------------------------------

MODULES = {
    "point": point,
    "velocity": velocity,
    "direction": direction,
    "dynamics": dynamics,
    "gaps": gaps,
    "way": way,
}
SETS = {
    "point": point_wordings(),
    "velocity": velocity_wordings(),
    "direction": direction_wordings(),
    "dynamics": dynamics_wordings(),
    "gaps": gap_wordings(),
    "way": way_wordings(),
}
PROBED = ("point", "velocity", "direction")  # by experiments/text_probe, in every group
GROUPS = [field.name for field in dataclasses.fields(point_wordings())]
# Half a unit of the coarsest writing.
ROUNDING = {"point": 0.006, "velocity": 0.051, "direction": 0.01, "dynamics": 0.006, "gaps": 0.006, "way": 0.0}
DRAWN = np.random.default_rng(0)
EXAMPLES = {
    "point": [(-1.0, 1.0), (0.0, -0.06), (0.31, -0.42), (-2.97, 0.38), *DRAWN.uniform(-1, 1, (8, 2))],
    "velocity": [0.0, 0.05, 3.0, *DRAWN.uniform(0, 3, 8)],
    "direction": [0.0, math.pi / 4, math.pi, 6.28, *DRAWN.uniform(0, 2 * math.pi, 12)],
    "dynamics": [(0.304, 1.13, 2.19, 3.37), (2.716, 0.58, 0.459, 1.22), (1.41, 3.24, 0.77, 0.353)],
    "gaps": [(-1.21, 0.43, 2.37, -0.87), (0.68, -1.46, 1.53, 0.0), (1.13, 0.02, 2.66, 1.69)],
    "way": [1.0, -1.0],
}


def fields_of(kind, example):
    if kind == "point":
        return {"x": Quantity(example[0]), "y": Quantity(example[1])}
    if kind == "dynamics":
        return dynamics_tasks.phrases(dict(zip(dynamics_tasks.FACTORS, example, strict=True)))
    if kind == "gaps":
        return gap_tasks.phrases(dict(zip(gap_tasks.PARAMETERS, example, strict=True)))
    if kind == "direction":
        return direction_phrases(example)
    return {"v" if kind == "velocity" else "way": Quantity(example)}


def quantities(template, fields):
    """The values that a sentence states, in order, read back from it; numbers that say something else left out."""
    text, stated = "", []
    for literal, name, spec, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            start, text = len(text), text + format(fields[name], spec)
            if isinstance(fields[name], Quantity) and "|" not in spec:
                stated.append((name, "size" in spec.split(), start, len(text)))
    numbers = read_numbers(text)
    read = [[n.value for n in numbers if n.start < end and n.end > start] for _, _, start, end in stated]
    assert [len(values) for values in read] == [1] * len(stated), text
    return [(name, size, values[0]) for (name, size, _, _), values in zip(stated, read, strict=True)]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", SETS)
def test_each_sentence_determines_the_parameters(kind, group):
    """By the numbers read from it, in SI units, and the sides named in it."""
    unknown = {"dm": 0.1, "decimetres": 0.1, "furlongs": UNITS["furlong/h"], "gradians": UNITS["gon"]}
    for template in getattr(SETS[kind], group):
        scale = next((unit for word, unit in unknown.items() if f" {word}" in template), 1.0)
        for example in EXAMPLES[kind]:
            fields = fields_of(kind, example)
            for name, size, value in quantities(template, fields):
                stated = fields[name].value
                assert value * scale == pytest.approx(abs(stated) if size else stated, abs=ROUNDING[kind]), template
                if size:
                    words = [w.split("|") for w in re.findall(rf"\{{{name}:([^{{}}]*\|[^{{}}]*)\}}", template)]
                    assert len(words) == 1 and words[0][0] != words[0][1], template
            if kind == "way":
                assert template.count("{way:") == 1, template
            if "{offset" in template:
                assert "{axis}" in template and "{towards}" in template


def test_headings_by_hand():
    """A heading of 100 degrees, then one just south of east."""
    fields = direction_phrases(math.radians(100))
    expected = {"angle": 100, "turn": 100, "bearing": 350, "clock": 350 / 30, "offset": 10}
    for name, degrees in expected.items():
        assert fields[name].value == pytest.approx(degrees if name == "clock" else math.radians(degrees)), name
    assert (fields["axis"], fields["towards"]) == ("north", "west")
    assert (fields["dx"].value, fields["dy"].value) == pytest.approx((-0.17365, 0.98481), abs=1e-5)
    fields = direction_phrases(math.radians(350))
    assert (fields["axis"], fields["towards"]) == ("east", "south")
    assert [fields[name].value for name in ("turn", "offset", "bearing")] == pytest.approx(
        [math.radians(d) for d in (-10, 10, 100)]
    )
    assert direction_phrases(math.pi / 2)["clock"].value == 12.0


@pytest.mark.parametrize("kind", SETS)
def test_no_sentence_is_in_two_groups(kind):
    groups = [set(getattr(SETS[kind], group)) for group in GROUPS]
    assert len(set().union(*groups)) == sum(map(len, groups))
    if kind in PROBED:
        assert all(len(getattr(SETS[kind], group)) >= 30 for group in GROUPS)
    else:
        assert all(len(getattr(SETS[kind], group)) >= 6 for group in ("train", "validation", "held_out"))


def parts_of(module, name):
    return [part for key, part in vars(module).items() if key.startswith(name) and isinstance(part, Parts)]


@pytest.mark.parametrize("kind", SETS)
def test_train_validation_and_held_out_wordings_share_neither_frames_nor_phrases(kind):
    for one, two in itertools.combinations(("TRAIN", "VALIDATION", "HELD_OUT"), 2):
        first, second = parts_of(MODULES[kind], one), parts_of(MODULES[kind], two)
        for a, b in itertools.product(first, second):
            for mine, other in itertools.product(a.frames + a.whole, b.frames + b.whole):
                assert likeness(mine, other) < 0.34, (mine, other)
            assert not {s for phrase in a.phrases for s in phrase} & {s for phrase in b.phrases for s in phrase}


@pytest.mark.parametrize("kind", ["gaps", "way"])
def test_no_remark_is_like_a_sentence_that_is_kept_from_training(kind):
    for part in parts_of(MODULES[kind], "VALIDATION") + parts_of(MODULES[kind], "HELD_OUT"):
        for remark, sentence in itertools.product(BEFORE + AFTER, part.frames + part.whole):
            assert likeness(remark, sentence) < 0.34, (remark, sentence)


def test_unseen_units_and_precisions_are_in_no_train_wording():
    for kind, module in ((kind, MODULES[kind]) for kind in PROBED):
        train = {word for writing in module.WRITINGS for word in writing.format.split() if word in UNITS}
        unseen = {w for writing in (*module.UNSEEN_UNIT, *module.UNKNOWN_UNIT) for w in writing.format.split()} & set(
            UNITS
        )
        assert unseen and not unseen & train, kind
        decimals = {word for writing in module.WRITINGS for word in writing.format.split() if word.isdigit()}
        assert "6" not in decimals and all("6" in writing.format.split() for writing in module.UNSEEN_PRECISION)


@pytest.mark.parametrize("group", ["train", "held_out"])
def test_goals_of_reacher_goal_are_told_to_a_millimetre(group):
    """Its arm is a fifth of a metre long, where point_robot's plane has two: tenths of an inch are the coarsest."""
    goals = ((-0.14, 0.12), (0.09, -0.17), (0.16, -0.03))
    for template, (x, y) in itertools.product(getattr(SETS["point"], group), goals):
        fields = reacher_goal().phrases({"goal_x": x, "goal_y": y})
        for name, size, value in quantities(template, fields):
            stated = fields[name].value
            assert value == pytest.approx(abs(stated) if size else stated, abs=0.0013), template


def test_reacher_goal_is_described_by_disjoint_sentences():
    train, held_out = ({w.template for w in reacher_goal().wordings if w.held_out == kind} for kind in (False, True))
    assert (len(train), len(held_out)) == (len(point_wordings().train), len(point_wordings().held_out))
    told = [reacher_goal().descriptions(task.parameters, held_out=False) for task in reacher_goal().tasks()]
    assert not train & held_out and len({texts[0] for texts in told}) == len(told)


# --- point_robot -----------------------------------------------------------------------------------------------------

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


def test_each_held_out_description_determines_the_goal():
    """Those of plain build are read back; of all, each number is there once, and without a sign it has a side."""
    values = (-1.0, -0.5, -0.42, -0.05, 0.0, 0.05, 0.31, 0.9, 1.0)
    others = {"form", "clause", "task_json", "wander"}  # hold a time, or words of sides or axes with other meanings
    plain = [n for n, template in HELD_OUT_TEMPLATES.items() if not re.search("{[xy]:", template) and n not in others]
    assert len(plain) == 15
    for x, y in itertools.product(values, values):
        texts = point_robot().descriptions({"goal_x": x, "goal_y": y}, held_out=True)
        for name, text in zip(HELD_OUT_TEMPLATES, texts, strict=True):
            if name in plain:
                assert read(text) == {"x": x, "y": y}, text
    for name, template in HELD_OUT_TEMPLATES.items():
        if name not in plain:
            for axis in "xy":
                size, side = f"{{{axis}:size}}" in template, re.search(rf"{{{axis}:\w[\w-]*\|[\w-]+}}", template)
                assert (size and side) or (template.count(f"{{{axis}}}") == 1 and not size and not side), template


def pairs_of_words(template):
    """Neighbouring words of a template, its fields left out: what a sentence is built of."""
    words = re.findall(r"[a-z_]+", re.sub(r"\{.*?\}", " ", template.lower()))
    return set(itertools.pairwise(["^", *words, "$"]))


def likeness(one, two):
    """Share of the neighbouring words that two templates have in common."""
    one, two = pairs_of_words(one), pairs_of_words(two)
    return len(one & two) / len(one | two)


def test_held_out_wordings_are_of_another_build():
    for (name, held_out), train in itertools.product(HELD_OUT_TEMPLATES.items(), point_wordings().train):
        assert likeness(held_out, train) < 0.2, f"{name} is built like {train}"


def test_train_wordings_cover_each_way_of_saying_a_number():
    """Held-out wordings are new sentences, not new words for a number or a sign."""
    goal = {"goal_x": 0.31, "goal_y": -0.42}
    fields = {field for t in HELD_OUT_TEMPLATES.values() for field in re.findall(r"\{(\w+)\}", t)}
    train = " ".join(point_robot().descriptions(goal, held_out=False))
    phrases = point_robot().phrases(goal)
    assert fields
    for field in fields:
        assert re.search(rf"(?<![\w.]){re.escape(format(phrases[field]))}(?![\w.]*\d)", train), field


@pytest.mark.parametrize("group", ["train", "validation", "held_out"])
def test_no_sentence_is_said_of_both_ways(group):
    forward, backward = (
        {template.format(way=Quantity(way)) for template in getattr(way_wordings(), group)} for way in (1.0, -1.0)
    )
    assert forward and not forward & backward
