"""Wordings of a heading on a plane.

Fields, all of one heading: `angle` counterclockwise from east (the x axis), 0 to a full turn; `turn` the same from
minus to plus half a turn; `bearing` clockwise from north (the y axis); `clock` the position on a clock's face, 12 being
north, 3 being east; `offset` from the nearest axis, whose name is `axis`, towards `towards`; `dx` and `dy` the
components of the unit vector.
"""

import functools
import math

from llmdpd_jax.tasks.wording import Parts, Quantity, WordingSet, Writing, compose

AXES = ("east", "north", "west", "south")


def direction_phrases(heading: float) -> dict[str, str | Quantity]:
    """What the fields stand for, for a heading in radians."""
    heading %= 2 * math.pi
    nearest = round(heading / (math.pi / 2))
    offset = heading - nearest * math.pi / 2
    bearing = (math.pi / 2 - heading) % (2 * math.pi)
    return {
        "angle": Quantity(heading),
        "turn": Quantity((heading + math.pi) % (2 * math.pi) - math.pi),
        "bearing": Quantity(bearing),
        "clock": Quantity(bearing / (math.pi / 6) or 12.0),
        "offset": Quantity(abs(offset)),
        "axis": AXES[nearest % 4],
        "towards": AXES[(nearest + (1 if offset >= 0 else -1)) % 4],
        "dx": Quantity(math.cos(heading)),
        "dy": Quantity(math.sin(heading)),
    }


_FRAMES = (
    "Walk with {a}.",
    "{a}",
    "Set off now: {a}.",
    "Your goal is to move away from the centre with {a}.",
    "Please crawl with {a} and do not turn back.",
    "Reward grows while you travel with {a}.",
    "For the coming 200 steps, {a}.",
    "Ant number 6 leaves with {a}.",
    "goal = [{a}]; strict = true",
    "Would you mind leaving the nest with {a}?",
    "[INFO] steering command accepted: {a}",
    "The wind will carry you with {a}, do not fight it.",
    "After 4 seconds of rest, start with {a}.",
    "The old map says {a}, so off we go.",
    "Keep {a} for 10 minutes.",
    "Compass needle 3 should show {a} all the time.",
    "hey, go {a} ok? thx",
    "The vehicle shall proceed with {a} in accordance with section 5.",
    "Task 21, attempt 2: {a}.",
    "controller.set({a})",
    "<command>{a}</command>",
    "The farther you get with {a}, the better.",
    "Pull the sledge, which weighs 40 kilograms, with {a}.",
    "Everybody else has gone already; follow with {a}.",
)
TRAIN = Parts(
    frames=_FRAMES,
    phrases=(
        ("a heading of <angle>",),
        ("heading <angle>",),
        ("an angle of <angle> counterclockwise from east",),
        ("direction <angle> measured counterclockwise from the x axis",),
        ("theta = <angle>",),
        ("a heading of <turn>",),
        ("yaw <turn>",),
        ("a compass bearing of <bearing>",),
        ("bearing <bearing>",),
        ("a direction <bearing> clockwise from north",),
        ("a course <offset> {towards} of {axis}",),
        ("a direction <offset> from {axis} towards {towards}",),
        ("<offset> off {axis} to the {towards}",),
        ('"heading": <angle>',),
        ("<angle> as the direction of travel",),
        ("phi: <angle>",),
        ("a course angle of <angle>, east being zero and north a quarter turn",),
        ("a rotation by <angle> from the x axis towards the y axis",),
        ("a target angle of <angle>",),
        ("a signed angle of <turn> from the x axis",),
        ("rotate_to(<turn>)",),
        ("a map bearing of <bearing>",),
        ("<bearing> on the compass",),
        ("a true course of <bearing>, north being zero and east a quarter turn",),
        ("a compass heading of <bearing>",),
        ("<bearing> as bearing",),
        ("a needle turned <bearing> clockwise away from north",),
        ("a way that leads <offset> {towards} of {axis}",),
        ("{axis}, but <offset> more to the {towards}",),
        ("{axis} plus <offset> to the {towards}",),
        ("a drift of <offset> from {axis} to {towards}",),
    ),
)
# Those that take no unit of an angle.
TRAIN_UNITLESS = Parts(
    frames=_FRAMES,
    phrases=(
        ("direction vector (<dx>, <dy>)",),
        ("x component <dx> and y component <dy>",),
        ("the {clock:2} o'clock position",),
        ("a clock position of {clock:2}",),
        ("the hour hand pointing to {clock:2}",),
        ("{clock:2} o'clock",),
        ("a step of <dx> along x for every <dy> along y",),
        ("cos = <dx>, sin = <dy>",),
        ("dx=<dx>, dy=<dy>",),
    ),
)
VALIDATION = Parts(
    frames=(
        "Scuttle off using {a} for the next 500 steps.",
        "The arrow ought to be drawn with {a}.",
        "Guard post 8 is found via {a}, at the horizon.",
        "mission -> {a} ;",
        "Carry the crumb home along {a}, good luck.",
        "By order of the queen, {a} from now on.",
    ),
    phrases=(
        ("an azimuth of <bearing>, clockwise from north",),
        ("a polar angle of <angle>",),
        ("orientation <angle> anticlockwise from the positive x axis",),
        ("the line <offset> {towards} from due {axis}",),
        ("a compass reading of <bearing>",),
    ),
)
VALIDATION_UNITLESS = Parts(
    frames=VALIDATION.frames,
    phrases=(("velocity proportional to [<dx>, <dy>]",), ("{clock:2} on the clock face",)),
)
HELD_OUT = Parts(
    frames=(
        "March, soldier, {a}, then rest for 60 seconds.",
        "set_goal({a}, timeout=90)",
        "In experiment 31, insects must depart along {a}.",
        "Everyone on board expects {a}!",
        "No other way leads home: {a}.",
        "Roll the ball, {a}, my friend.",
    ),
    phrases=(
        ("a path at <angle> to the x axis, turning counterclockwise",),
        ("desired_heading <angle>",),
        ("a nautical bearing equal to <bearing>",),
        ("steering <offset> {towards} relative to straight {axis}",),
        ("motion along <angle>, anticlockwise from east",),
    ),
)
HELD_OUT_UNITLESS = Parts(
    frames=HELD_OUT.frames,
    phrases=(("unit vector <dx>, <dy>",), ("at {clock:2} if north is 12 o'clock",)),
)
WRITINGS = (
    Writing("0 deg", " degrees"),
    Writing("2", " rad"),
    Writing("1 deg", "°"),
    Writing("2", " radians"),
    Writing("2 deg", " degrees"),
    Writing("0 words deg", " degrees"),
    Writing("3", " rad"),
    Writing("0 deg", " deg"),
    Writing("2 words", " radians"),
    Writing("1 deg", " degrees"),
    Writing("0 deg", "deg"),
    Writing("2 exp", " rad"),
    Writing("2 times", " radians"),
)
UNITLESS_WRITINGS = (Writing("2"), Writing("3"), Writing("+"), Writing("2 exp"), Writing("words"))
UNSEEN_UNIT = (Writing("3 turn", " turns"), Writing("3 turn", " of a full turn"))
UNKNOWN_UNIT = (Writing("1 gon", " gradians"),)
UNSEEN_PRECISION = (Writing("6", " radians"), Writing("6 deg", " degrees"))
EVERY = 3


@functools.cache
def direction_wordings() -> WordingSet:
    """All wordings of a heading."""
    return WordingSet(
        train=compose(TRAIN, WRITINGS, EVERY) + compose(TRAIN_UNITLESS, UNITLESS_WRITINGS, EVERY),
        validation=compose(VALIDATION, WRITINGS) + compose(VALIDATION_UNITLESS, UNITLESS_WRITINGS),
        held_out=compose(HELD_OUT, WRITINGS) + compose(HELD_OUT_UNITLESS, UNITLESS_WRITINGS),
        unseen_unit=compose(TRAIN, UNSEEN_UNIT, 11),
        unknown_unit=compose(TRAIN, UNKNOWN_UNIT, 11),
        unseen_precision=compose(TRAIN, UNSEEN_PRECISION, 11),
    )
