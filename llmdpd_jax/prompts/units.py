"""Units of length, speed, angle and ratio behind a number, and their SI values.

A description may give a goal in metres or in feet. Converting is arithmetic, which a small LLM is bad at, so it is done
here. Units that are not in these tables stay words, and products and powers of units ("m/s^2", "N m") do too.
"""

import math
import re
from dataclasses import dataclass

_LENGTHS = {
    1.0: "m metre metres meter meters",
    0.01: "cm centimetre centimetres centimeter centimeters",
    0.001: "mm millimetre millimetres millimeter millimeters",
    1000.0: "km kilometre kilometres kilometer kilometers",
    0.0254: "inch inches",
    0.3048: "ft foot feet",
    0.9144: "yd yard yards",
    1609.344: "mi mile miles",
}
_TIMES = {
    1.0: "s sec second seconds",
    60.0: "min minute minutes",
    3600.0: "h hr hour hours",
}
_SPEEDS = {
    1.0: "mps",
    1 / 3.6: "kmh kph",
    0.44704: "mph",
    0.3048: "fps",
    1852 / 3600: "knot knots kn kt kts",
}
_ANGLES = {
    1.0: "rad rads radian radians",
    math.pi / 180: "deg degs degree degrees °",
    2 * math.pi: "turns revolutions",
}
_RATIOS = {0.01: "percent %"}


def _by_name(table: dict[float, str]) -> dict[str, float]:
    return {name: factor for factor, names in table.items() for name in names.split()}


LENGTHS, TIMES, SPEEDS, ANGLES, RATIOS = map(_by_name, (_LENGTHS, _TIMES, _SPEEDS, _ANGLES, _RATIOS))


def _either(names) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


# A bracket may close a list ("(31, 42) cm"); behind words "half a metre" and "two thirds of a metre" are said.
_UNIT = re.compile(
    rf"""
    (?: [)\]]? [\s\-‐‑]? | (?<=half|rter) \s an? \s | (?<=[a-z]) \s of \s an? \s )
    (?P<unit>
      (?P<length> {_either(LENGTHS)} )
      (?: (?: \s?/\s? | \s (?: per | an? | each | every ) \s ) (?P<time> {_either(TIMES)} )
        | [\s·] (?P<inverse> s|sec|min|h|hr ) (?: (?: \^ | \*\* )? [-−] 1 | ⁻¹ ) )?
      | (?P<speed> {_either(SPEEDS)} )
      | (?P<angle> {_either(ANGLES)} )
      | (?P<ratio> {_either(RATIOS)} )
      | (?P<turn> of \s a \s (?: full \s | whole \s | complete \s )? (?: turn | circle | revolution ) )
    )
    (?! [A-Za-z0-9_°²³⁻]                                        # the name goes on, or a power follows
      | \s? (?: \^ | \*\* | [/·] \s? [a-z] )
      | \s (?: per | squared | cubed | of \s freedom | [CF] | Celsius | Fahrenheit ) \b
      | \s (?: s | sec | min | h | hr ) (?: \^ | \*\* | [-−⁻][0-9¹²³] ) )
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Unit:
    """A unit that a number is given in."""

    name: str  # of the SI unit: "m", "m/s" or "rad"; "times" of a ratio
    factor: float  # what one of it is in the SI unit
    start: int  # text[start:end] names it
    end: int


def read_unit(text: str, end: int) -> Unit | None:
    """The unit named right behind a number that ends at `end`; None where there is none that is known."""
    match = _UNIT.match(text, end)
    if match is None:
        return None
    place = match.span("unit")
    groups = {name: found.lower() for name, found in match.groupdict().items() if found}
    if "length" in groups:
        time = groups.get("time") or groups.get("inverse")
        factor = LENGTHS[groups["length"]]
        return Unit("m/s", factor / TIMES[time], *place) if time else Unit("m", factor, *place)
    if "speed" in groups:
        return Unit("m/s", SPEEDS[groups["speed"]], *place)
    if "ratio" in groups:
        return Unit("times", RATIOS[groups["ratio"]], *place)
    return Unit("rad", ANGLES[groups.get("angle", "turns")], *place)
