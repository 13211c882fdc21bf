"""Wordings of a target speed: field `v`, in metres per second."""

import functools

from llmdpd_jax.tasks.wording import Parts, WordingSet, Writing, compose

# Every third frame or so holds numbers that mean something else, before or behind the speed.
TRAIN = Parts(
    frames=(
        "Run forward with {a}.",
        "{a}",
        "Keep {a} until the episode ends.",
        "Your goal: {a}.",
        "Please move at {a} and hold it steady.",
        "Reward peaks at {a}.",
        "Over the next 200 steps, maintain {a}.",
        "Agent 4 has to reach {a}.",
        "goal = {a}; strict = true",
        "Would you be so kind as to go ahead with {a}?",
        "[INFO] new command accepted: {a}",
        "The cheetah is expected to gallop with {a}, neither faster nor slower.",
        "After 3 seconds of warm-up, switch to {a}.",
        "The coach shouted {a} across the field, and so it shall be.",
        "Hold {a} for 15 minutes.",
        "Sensor 12 should report {a} during the whole trial.",
        "We would like to see {a} on the display, please.",
        "Whatever happens behind you, go on with {a}.",
        "The runner's plan for today says {a}, with no break.",
        "hey could you do {a} today? thx",
        "The vehicle shall travel with {a} in accordance with section 5.",
        "Imagine a belt that moves with {a}: stay on it.",
        "Task 17, attempt 2: {a}.",
        "controller.set({a})",
        "Stay on lane 6 and keep {a}.",
        "It is a lovely evening for a trip with {a} along the beach.",
        "Of all possible gaits choose the one that gives {a}.",
        "Deviation from {a} is punished.",
        "<command>{a}</command>",
        "Pull the sledge, which weighs 40 kilograms, with {a}.",
    ),
    phrases=(
        ("a speed of <v>",),
        ("speed <v>",),
        ("v = <v>",),
        ("a velocity of <v>",),
        ("a pace of <v>",),
        ("target speed: <v>",),
        ("<v>",),
        ("<v> as the speed",),
        ("forward velocity <v>",),
        ("velocity=<v>",),
        ("a steady <v>",),
        ("exactly <v>",),
        ("a mean speed equal to <v>",),
        ('"speed": <v>',),
        ("<v> of forward motion",),
        ("a rate of <v>",),
        ("vx <v>",),
        ("a running speed near <v>",),
    ),
)
VALIDATION = Parts(
    frames=(
        "Trot along using {a} for the next 500 steps.",
        "The dial ought to point at {a}.",
        "Patrol gate 8 while doing {a}, day and night.",
        "mission -> {a} ;",
        "Carry the letter onward with {a}, good luck.",
        "By order of the captain, {a} from now on.",
    ),
    phrases=(
        ("a tempo of <v>",),
        ("your speedometer showing <v>",),
        ("v_x := <v>",),
        ("motion as fast as <v>",),
        ("a cruising speed of <v>",),
    ),
)
HELD_OUT = Parts(
    frames=(
        "Sprint down the track, {a}, then rest for 60 seconds.",
        "set_goal({a}, timeout=90)",
        "In experiment 31, the animal must sustain {a}.",
        "Everyone on board expects {a}!",
        "No more and no less than this: {a}.",
        "Chase the rabbit; it flees by {a}.",
    ),
    phrases=(
        ("a swiftness of <v>",),
        ("locomotion at <v>",),
        ("desired_velocity <v>",),
        ("<v> in the forward direction",),
        ("quickness measuring <v>",),
    ),
)
WRITINGS = (
    Writing("2", " m/s"),
    Writing("2 km/h", " km/h"),
    Writing("1", " m/s"),
    Writing("2", " metres per second"),
    Writing("1 mph", " mph"),
    Writing("3", " m/s"),
    Writing("0 cm/s", " cm/s"),
    Writing("1 km/h", " kilometres per hour"),
    Writing("2 words", " metres per second"),
    Writing("2"),
    Writing("2 ft/s", " ft/s"),
    Writing("1 words km/h", " kilometres per hour"),
    Writing("2 exp", " m/s"),
    Writing("2 mph", " miles per hour"),
    Writing("short", "m/s"),
    Writing("0 cm/s", " centimetres per second"),
    Writing("2 times", " m/s"),
    Writing("1 ft/s", " feet per second"),
    Writing("1 km/h", "km/h"),
)
UNSEEN_UNIT = (Writing("2 knot", " knots"), Writing("2 knot", " kn"))
UNKNOWN_UNIT = (Writing("2 furlong/h", " furlongs per hour"),)
UNSEEN_PRECISION = (Writing("6", " m/s"), Writing("6 km/h", " km/h"), Writing("6"))
EVERY = 3


@functools.cache
def velocity_wordings() -> WordingSet:
    """All wordings of a target speed."""
    return WordingSet(
        train=compose(TRAIN, WRITINGS, EVERY),
        validation=compose(VALIDATION, WRITINGS),
        held_out=compose(HELD_OUT, WRITINGS),
        unseen_unit=compose(TRAIN, UNSEEN_UNIT, 11),
        unknown_unit=compose(TRAIN, UNKNOWN_UNIT, 11),
        unseen_precision=compose(TRAIN, UNSEEN_PRECISION, 11),
    )
