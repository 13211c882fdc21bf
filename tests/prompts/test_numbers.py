"""What counts as a number in a description, what its value is, and where it stands."""

import numpy as np
import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.numbers import Number, hide_numbers, read_numbers, spelling_tokens, values_at

# text -> (value, characters that spell it), from left to right
FIGURES = {
    "Navigate to position (0.31, -0.42).": [(0.31, "0.31"), (-0.42, "-0.42")],
    "(0.31,-0.42)": [(0.31, "0.31"), (-0.42, "-0.42")],
    "x=-0.5 y=+.25 z=-.75": [(-0.5, "-0.5"), (0.25, "+.25"), (-0.75, "-.75")],
    "go to 3.": [(3, "3")],
    "1.50.": [(1.5, "1.50")],
    "−0.42 and –0.1 and －2": [(-0.42, "−0.42"), (-0.1, "–0.1"), (-2, "－2")],
    "minus 0.42, Negative .5, plus 3": [(-0.42, "minus 0.42"), (-0.5, "Negative .5"), (3, "plus 3")],
    "[-1,1]": [(-1, "-1"), (1, "1")],
    "x = - 0.5": [(-0.5, "- 0.5")],
    "(0.3, - 0.4)": [(0.3, "0.3"), (-0.4, "- 0.4")],
    "0.3 -0.4": [(0.3, "0.3"), (-0.4, "-0.4")],
    "speed:-2": [(-2, "-2")],
    "1e-3, -2.5E+4, 3×10^-2, 4 x 10^2, 10^-3": [
        (1e-3, "1e-3"),
        (-2.5e4, "-2.5E+4"),
        (0.03, "3×10^-2"),
        (400, "4 x 10^2"),
        (1e-3, "10^-3"),
    ],
    "1,250.5 m, 2,000 m": [(1250.5, "1,250.5"), (2000, "2,000")],
    "(3,250)": [(3, "3"), (250, "250")],
    "1,2,3": [(1, "1"), (2, "2"), (3, "3")],
    "1/2 of it, -3/4": [(0.5, "1/2"), (-0.75, "-3/4")],
    "0.5m/s 90° 90deg 50% 1.2km": [(0.5, "0.5"), (90, "90"), (90, "90"), (50, "50"), (1.2, "1.2")],
    "3.1x10^-1 and 3.1 × 10⁻¹ and 10⁻²": [(0.31, "3.1x10^-1"), (0.31, "3.1 × 10⁻¹"), (0.01, "10⁻²")],
    "2 1/2 m, 1 3/4": [(2.5, "2 1/2"), (1.75, "1 3/4")],
    "3 plus -0.5, minus -2, minus-3": [(3, "3"), (-0.5, "plus -0.5"), (2, "minus -2"), (-3, "minus-3")],
    "±0.5 +/-0.5": [(0.5, "0.5"), (0.5, "0.5")],
    "target[0] = -0.14, g[1][2]=3": [(-0.14, "-0.14"), (3, "3")],
    "walk_to[3, 4] then stop": [(3, "3"), (4, "4")],
    "goal[0.5] [2], at [3]": [(0.5, "0.5"), (2, "2"), (3, "3")],
    "٣ ½": [],
}
NO_SIGN = {
    "0.2-0.5": [0.2, 0.5],
    "0.2–0.5": [0.2, 0.5],
    "0.2 - 0.5": [0.2, 0.5],
    "0.2 – 0.5": [0.2, 0.5],
    "-0.5--0.2": [-0.5, -0.2],
    "between -1 and -0.5-metre": [-1, -0.5],
    "top-5 left-right 0.3": [5, 0.3],
    "Target - 0.5, 0.3": [0.5, 0.3],
    "well-known--0.5": [0.5],
    "a 10-step walk": [10],
    "(a)-3": [3],
    "3+4": [3, 4],
    "a minus sign, a negative reward": [],
    "2026-11-22": [2026, 11, 22],
}
NOT_QUANTITIES = [
    "v2 task_3 x1 SmolLM2 3d_pose 2x4 mt50",
    "1.2.3",
    "in 2-D, 3D, 2D-plane and 2-dimensional space",
    "the 1st, 2nd, 3rd and 4th",
    "m/s^2, m s^-1, m s-1, m s−1, x^2",
    "1/0",
    "two-dimensional, zero-shot, four-legged",
    "the one on the left, that one, one of them, one another",
    "someone often tenth atone",
    "",
]
WORDS = {
    "zero point three one": [(0.31, "zero point three one")],
    "x Zero Point Three One, y minus zero point four two.": [
        (0.31, "Zero Point Three One"),
        (-0.42, "minus zero point four two"),
    ],
    "zero point three one zero point four two": [(0.31, "zero point three one"), (0.42, "zero point four two")],
    "zero point three one minus zero point four": [(0.31, "zero point three one"), (-0.4, "minus zero point four")],
    "nought point oh five": [(0.05, "nought point oh five")],
    "one point twenty-five": [(1.25, "one point twenty-five")],
    "minus point five": [(-0.5, "minus point five")],
    "the point five metres away": [(5, "five")],
    "twenty-one and thirty two": [(21, "twenty-one"), (32, "thirty two")],
    "minus twenty-one hundredths": [(-0.21, "minus twenty-one hundredths")],
    "three quarters, one half, a quarter, half a metre, one third": [
        (0.75, "three quarters"),
        (0.5, "one half"),
        (0.25, "a quarter"),
        (0.5, "half"),
        (1 / 3, "one third"),
    ],
    "the left half, a third goal": [],
    "one and a half metres": [(1.5, "one and a half")],
    "one hundred and five point two": [(105.2, "one hundred and five point two")],
    "between one hundred and two hundred": [(100, "one hundred"), (200, "two hundred")],
    "between one thousand and two thousand": [(1000, "one thousand"), (2000, "two thousand")],
    "three thousand two hundred and six": [(3206, "three thousand two hundred and six")],
    "two hundred thousand": [(200_000, "two hundred thousand")],
    "one million two hundred thousand and ten": [(1_200_010, "one million two hundred thousand and ten")],
    "twelve hundred": [(1200, "twelve hundred")],
    "three four": [(3, "three"), (4, "four")],
    "from zero to ten": [(0, "zero"), (10, "ten")],
    "five-step": [(5, "five")],
    "three. Point five": [(3, "three"), (5, "five")],
    "one, two": [(1, "one"), (2, "two")],
    "at speed one": [(1, "one")],
    "two and three quarters, one and two fifths": [(2.75, "two and three quarters"), (1.4, "one and two fifths")],
    "one and two": [(1, "one"), (2, "two")],
    "a hundred and five steps": [(105, "a hundred and five")],
    "walk a hundred steps": [(100, "a hundred")],
    "oh point five, nil point three": [(0.5, "oh point five"), (0.3, "nil point three")],
    "oh five": [(5, "five")],
    "twenty zero": [(20, "twenty"), (0, "zero")],
}


@pytest.mark.parametrize(("text", "expected"), [*FIGURES.items(), *WORDS.items()])
def test_values_and_places(text, expected):
    found = read_numbers(text, units=False)
    assert [text[number.start : number.end] for number in found] == [spelling for _, spelling in expected]
    assert [number.value for number in found] == pytest.approx([value for value, _ in expected])


@pytest.mark.parametrize(("text", "expected"), NO_SIGN.items())
def test_a_hyphen_that_joins_is_no_sign(text, expected):
    assert [number.value for number in read_numbers(text, units=False)] == expected


@pytest.mark.parametrize("text", NOT_QUANTITIES)
def test_what_is_no_quantity_is_not_read(text):
    assert read_numbers(text) == []


def test_any_float_comes_back():
    rng = np.random.default_rng(0)
    for value in rng.normal(0, 10.0 ** rng.integers(-6, 7, 200)):
        for spelling in (f"{value:.2f}", f"{value:.6f}", f"{value:.3e}", repr(float(value))):
            texts = (f"go to {spelling}.", f"({spelling}, 1)", f"{spelling}m/s")
            for text in texts:
                assert read_numbers(text)[0].value == float(spelling), text


def test_overflow_is_an_error():
    with pytest.raises(UserError, match="'1e39' is beyond the range of float32"):
        read_numbers("go to 1e39")


def test_numbers_on_tokens():
    text = "Go to (0.5, minus  2) now"
    spans = ["Go", " to", " (", "0", ".", "5", ",", " minus", " ", " 2", ")", " now"]
    ends = np.cumsum([len(span) for span in spans])
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    index = spelling_tokens(text, read_numbers(text), offsets)
    values = values_at(read_numbers(text), index)
    assert values.tolist() == [0, 0, 0, 0.5, 0.5, 0.5, 0, -2, 0, -2, 0, 0]
    assert index.tolist() == [-1, -1, -1, 0, 0, 0, -1, 1, -1, 1, -1, -1]
    assert values.dtype == np.float32
    assert index.dtype == np.int32


def test_several_tokens_for_one_character():
    """Byte-level tokenizers may cut "−" into bytes, all of which cover the same character."""
    index = spelling_tokens("−2", read_numbers("−2"), [(0, 1), (0, 1), (0, 1), (1, 2)])
    assert index.tolist() == [0] * 4
    assert values_at(read_numbers("−2"), index).tolist() == [-2] * 4


def test_hidden_numbers_leave_the_rest_and_keep_their_places():
    text, numbers = hide_numbers("Move -0.42 up and minus two point five left, 3.")
    assert text == "Move 1 up and 1 left, 1."
    assert numbers == [Number(-0.42, 5, 6), Number(-2.5, 14, 15), Number(3.0, 22, 23)]
    assert hide_numbers("stay where you are") == ("stay where you are", [])


def test_numbers_of_a_list_share_the_unit_behind_it():
    def values(text):
        return [number.value for number in read_numbers(text)]

    assert values("(31, -42) cm") == pytest.approx([0.31, -0.42])
    assert values("3.6 to 7.2 km/h") == pytest.approx([1.0, 2.0])
    assert values("31 by 42 by 7 mm") == pytest.approx([0.031, 0.042, 0.007])
    assert values("31 m and 42 cm") == pytest.approx([31, 0.42])  # each has its own
    assert values("31 steps, 42 cm") == pytest.approx([31, 0.42])  # no list of lengths
    assert values("5 goals, 31 and 42 cm") == pytest.approx([5, 0.31, 0.42])


def test_units_are_hidden_with_their_numbers():
    assert hide_numbers("Run at 7.2km/h for 3 s.") == (
        "Run at 1 m/s for 1 s.",
        [Number(2.0, 7, 8), Number(3.0, 17, 18)],
    )
    text, numbers = hide_numbers("x = -31 cm, heading 90°, speed 5 furlongs per day")
    assert text == "x = 1 m, heading 1 rad, speed 1 furlongs per day"
    assert [number.value for number in numbers] == pytest.approx([-0.31, np.pi / 2, 5])
    assert [text[number.start : number.end] for number in numbers] == ["1", "1", "1"]
    assert hide_numbers("(31, 42) cm")[0] == "(1, 1) m"
    assert hide_numbers("7.2km/h", units=False) == ("1km/h", [Number(7.2, 0, 1)])


def test_overflow_of_the_si_value_is_an_error():
    with pytest.raises(UserError, match="'3e38' is beyond the range of float32"):
        read_numbers("go 3e38 km")
