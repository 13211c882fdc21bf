"""Wordings of one of two ways along a track: field `way`, of which only the sign counts, plus being forward."""

import functools

from llmdpd_jax.tasks.wording import Parts, WordingSet, Writing, compose, with_asides

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
        "Keep on {a} for 10 minutes.",
        "The old map says {a}, so off we go.",
        "<command>{a}</command>",
        "Mum said {a}, and then run as far as you can!",
        "Robot 15 and its 3 helpers were told to move {a}.",
        "Captain's log, day 12: we race {a} until dusk.",
        "Tower to flight 708, continue {a}, over.",
        "Line 3 of the form, way of travel: {a}",
        "Score is given for ground covered {a}; standing still earns nothing.",
        "Should anyone ask which way you are off to, answer: {a}.",
        "{a} -- that, and nothing else, is the way to go.",
        "assert agent.travels('{a}'), 'wrong way'",
        "It is requested that the unit depart {a} at 0600 hours.",
        "ok so basically just keep moving {a} forever",
        "2024-05-17 08:41:03 drive: new target received, {a}",
        "{a}, please, and as fast as possible.",
        "The farther you get {a}, the better.",
        "Everybody else has gone already; follow {a}.",
        "Problem 9. A body of 14 kilograms is to move {a}. How far does it get?",
        "SELECT policy WHERE task IS '{a}';",
        "After the hut, 2 miles from the car park, runners carry on {a}.",
        "Pull the sledge, which weighs 40 kilograms, {a}.",
        "{a} is what the trainer ordered.",
        "The wind will carry you {a}, do not fight it.",
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
        ("{way:snout first|tail first}",),
        ("{way:in the plus x direction|in the minus x direction}",),
        ("{way:at a positive velocity along the track|at a negative velocity along the track}",),
        ("{way:so that x keeps increasing|so that x keeps decreasing}",),
        ("{way:in first gear|in reverse gear}",),
        ('{way:"fwd"|"rev"}',),
        ("{way:where your eyes look|where your eyes do not look}",),
        ("{way:in a steady advance|in a steady retreat}",),
        ("{way:with the bow leading|with the stern leading}",),
        ("{way:toward the top edge of a heading-up map|toward the bottom edge of a heading-up map}",),
        ("{way:chest leading, hindquarters trailing|hindquarters leading, chest trailing}",),
        ("{way:in the rostral direction|in the caudal direction}",),
        ("{way:with your headlights lighting the way|with your reversing lights lighting the way}",),
        ("{way:as in an ordinary stroll, no moonwalk|as in a moonwalk, no ordinary stroll}",),
        ("{way:v_x := +abs(v_x)|v_x := -abs(v_x)}",),
        ("{way:to the fore|to the rear}",),
        ("{way:straight on|straight back}",),
        ("{way:toward the larger numbers on the distance markers|toward the smaller numbers on the distance markers}",),
        ("{way:with the odometer winding up|with the odometer winding down}",),
        ("{way:KEY_W|KEY_S}",),
        ("{way:away from your own tail|away from your own nose}",),
        ("{way:with the breeze hitting your face|with the breeze hitting your backside}",),
        ("{way:face-first, dude, no messing|butt-first, dude, no messing}",),
        ("{way:like a truck pulling out onto the highway|like a truck backing up to the loading dock}",),
        ("{way:Direction.AHEAD|Direction.BEHIND}",),
        ("{way:reverse=False|reverse=True}",),
        ("{way:x++|x--}",),
        ("{way:by advancing, never by withdrawing|by withdrawing, never by advancing}",),
        ("{way:parallel to the body's heading vector|antiparallel to the body's heading vector}",),
        ("{way:as though pulled by a ring in your nose|as though pulled by a rope on your tail}",),
        ("{way:like a horse charging at what it faces|like a horse backing out of its stall}",),
        ("{way:without ever backing up|without ever moving ahead}",),
        ("{way:downstage, toward the audience you are facing|upstage, away from the audience you are facing}",),
        ("{way:to me in front of you, without turning round|to me behind you, without turning round}",),
        ("{way:gaining ground|giving ground}",),
        ("{way:with only the front camera seeing what comes next|with only the rear camera seeing what comes next}",),
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


EVERY = 4  # a phrase meets every so-manieth frame


@functools.cache
def way_wordings() -> WordingSet:
    """All wordings of a way along a track."""
    plain = (Writing("2"),)
    return WordingSet(
        train=with_asides(compose(TRAIN, plain, EVERY)),
        validation=compose(VALIDATION, plain),
        held_out=compose(HELD_OUT, plain),
    )
