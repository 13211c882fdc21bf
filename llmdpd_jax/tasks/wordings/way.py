"""Wordings of one of two ways along a track: field `way`, of which only the sign counts, plus being forward."""

import functools

from llmdpd_jax.tasks.wording import Parts, WordingSet, Writing, compose

TRAIN = Parts(
    frames=(
        "Run {a}.",
        "{a}",
        "Your goal is to get as far {a} as you can.",
        "Please go {a}, and be quick about it.",
        "direction = {a}; limit = none",
        "For the next 200 steps gallop {a}.",
        "[INFO] drive command 17: {a}",
        "The crowd at gate 3 shouts: {a}!",
        "We pay 5 points for every metre covered {a}.",
        "After 2 seconds of rest, dash {a}.",
        "hey can you sprint {a}? thx",
        "controller.go({a})",
        "The agent shall travel {a} in accordance with section 4.",
        "Only ground gained {a} counts today.",
        "Task 9, attempt 2: move {a} at full speed.",
        "Would you be so kind as to hurry {a}?",
        "Whatever happens, keep on running {a}.",
        "# ticket 1093: the cheetah must race {a}",
    ),
    phrases=(
        ("{way:forward|backward}",),
        ("{way:forwards|backwards}",),
        ("{way:ahead|back}",),
        ("in the {way:forward|backward} direction",),
        ("{way:straight ahead|in reverse}",),
        ("along the track's {way:positive|negative} direction",),
        ("towards {way:plus|minus} x",),
        ("{way:nose first|tail first}",),
        ("to the {way:front|rear}",),
        ("{way:onward|rearward}",),
    ),
)
VALIDATION = Parts(
    frames=("Leave this place {a} without delay.", "mission 8 -> {a}", "By order of the captain, charge {a}."),
    phrases=(("with your {way:head|tail} leading",), ("in {way:forward|reverse} gear",)),
)
HELD_OUT = Parts(
    frames=(
        "Show the 4 judges how fast you are {a}.",
        "set_goal({a}, timeout=60)",
        "In experiment 31 the animal flees {a}.",
        "Everyone on board expects to move {a}, at top speed!",
    ),
    phrases=(
        ("{way:frontwards|rearwards}",),
        ("{way:the way you face|away from where you face}",),
        ("{way:forth|backward, not forward}",),
    ),
)


@functools.cache
def way_wordings() -> WordingSet:
    """All wordings of a way along a track."""
    plain = (Writing("2"),)
    return WordingSet(
        train=compose(TRAIN, plain), validation=compose(VALIDATION, plain), held_out=compose(HELD_OUT, plain)
    )
