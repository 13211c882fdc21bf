"""Which words behind a number are units, and what they are worth."""

import math

import pytest

from llmdpd_jax.prompts.units import read_unit

KNOWN = {
    "m": ("m", 1.0),
    " metres": ("m", 1.0),
    " cm": ("m", 0.01),
    "mm": ("m", 0.001),
    " Kilometres": ("m", 1000.0),
    "-inch": ("m", 0.0254),
    " feet": ("m", 0.3048),
    " m/s": ("m/s", 1.0),
    "m/s": ("m/s", 1.0),
    " m / s": ("m/s", 1.0),
    " m s-1": ("m/s", 1.0),
    " m s^-1": ("m/s", 1.0),
    " m s⁻¹": ("m/s", 1.0),
    " metres per second": ("m/s", 1.0),
    " feet each second": ("m/s", 0.3048),
    " cm a minute": ("m/s", 0.01 / 60),
    " km/h": ("m/s", 1 / 3.6),
    "kmh": ("m/s", 1 / 3.6),
    " kilometres an hour": ("m/s", 1 / 3.6),
    " mph": ("m/s", 0.44704),
    " miles per hour": ("m/s", 1609.344 / 3600),
    " knots": ("m/s", 1852 / 3600),
    " rad": ("rad", 1.0),
    "°": ("rad", math.pi / 180),
    "deg": ("rad", math.pi / 180),
    "-degree": ("rad", math.pi / 180),
    " turns": ("rad", 2 * math.pi),
    " of a full turn": ("rad", 2 * math.pi),
    " of a revolution": ("rad", 2 * math.pi),
    " %": ("times", 0.01),
    "%": ("times", 0.01),
    " percent": ("times", 0.01),
}
UNKNOWN = [
    "",
    ".",
    " east",
    " in front",
    " s",
    " steps",
    " m/s^2",
    " m/s²",
    " m/s/s",
    " m s^-2",
    " m s⁻²",
    " m²",
    " m^2",
    " metres squared",
    " rad/s",
    " rad per second",
    " °C",
    "°F",
    " degrees Celsius",
    " degrees of freedom",
    " turn left",
    " decimetres",
    " furlongs per hour",
    " mx",
    ", m",
    " a metre",
    " of a metre",
]


@pytest.mark.parametrize(("words", "expected"), KNOWN.items())
@pytest.mark.parametrize("behind", ["", ".", ", then stop", " north", " (soon)", "/2.5 m"])
def test_known_units(words, expected, behind):
    text = f"go 5{words}{behind}"
    unit = read_unit(text, 4)
    assert (unit.name, unit.factor) == (expected[0], pytest.approx(expected[1]))
    assert text[unit.start : unit.end] == words.lstrip(" -")


@pytest.mark.parametrize("words", UNKNOWN)
def test_what_is_no_known_unit_stays_words(words):
    assert read_unit(f"go 5{words} now", 4) is None


@pytest.mark.parametrize("text", ["half a metre", "a quarter of a metre", "two thirds of a metre"])
def test_a_unit_behind_a_spelled_fraction(text):
    end = min(text.index(word) + len(word) for word in ("half", "quarter", "thirds") if word in text)
    unit = read_unit(text, end)
    assert (unit.name, unit.factor, text[unit.start : unit.end]) == ("m", 1.0, "metre")


def test_a_bracket_closes_a_list():
    assert read_unit("(31, 42) cm", 7).name == "m"
    assert read_unit("[31, 42]cm", 7).name == "m"
