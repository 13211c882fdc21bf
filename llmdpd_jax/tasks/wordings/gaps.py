"""Wordings of a room with two walls, each with a gap, and a goal behind them.

Fields, in metres from the middle of the room: `l` and `r`, the y of the gap in the left and in the right wall; `x` and
`y` of the goal, of which x is positive.
"""

import functools

from llmdpd_jax.tasks.wording import Parts, WordingSet, Writing, compose, with_asides

TRAIN = Parts(
    frames=(
        "Two walls stand in your way: {a}, {b}, {c}, {d}.",
        "{a}; {b}; {c}; {d}",
        "The room has {a}, {b}, {c} and {d}. Find your way.",
        "Get to the goal without bumping into anything. {a}, {b}, {c}, {d}.",
        "maze = [{a}, {b}, {c}, {d}]",
        "Whoever built this place left {a} and {b}, besides {c} and {d}.",
        "Floor plan number 12: {a} | {b} | {c} | {d}",
        "Go through both walls. Remember {a} and {b}, and also {c} and {d}.",
        "hey, to get over here you need {a}, {b}, {c}, {d}, ok?",
        "[INFO] map loaded in 35 ms ({a}, {b}, {c}, {d})",
        "For the next 40 steps: {a}, {b}, {c}, {d}.",
        "The caretaker noted {a}, then {b}, then {c}, and at last {d}.",
        "You cannot see the walls, so listen well: {a}, {b}, {c}, {d}.",
        "load_room({a}, {b}, {c}, {d})",
        "Task 8 of 60. Known facts: {a}; {b}; {c}; {d}. Reach the goal.",
        "Since the lights are out you have to go by this: {a}, {b}, {c} and {d}.",
        "<room>{a} {b} {c} {d}</room>",
        "Mouse number 3 smells cheese. Its map shows {a}, {b}, {c}, {d}.",
        "Dear guest, to find your seat mind {a}, {b}, {c} and {d}. Welcome!",
        "Please steer the cart to where it belongs, given {a} and {b} and {c} and {d}.",
        "Exercise 5. A point moves in a room with {a}, {b}, {c}, {d}. Find the fastest way.",
        "The blueprint says {a}, it says {b}, it says {c}, and it says {d}.",
        "// level 21\n{a}\n{b}\n{c}\n{d}",
        "The reward is highest at the goal. Layout: {a}, {b}, {c}, {d}.",
        "With {a} and {b} the shortest way is clear, since there is {c} as well as {d}.",
        "A robot vacuum, 2 years old, learned {a}, {b}, {c} and {d} by heart.",
        "Guards change at 9. Until then use {a}, {b}, {c}, {d}.",
    ),
    phrases=(
        (
            "the left wall open at y = <l>",
            "the right wall open at y = <r>",
            "the goal at x = <x>",
            "the goal at y = <y>",
        ),
        ("left gap <l>", "right gap <r>", "goal x <x>", "goal y <y>"),
        ("gap_left = <l>", "gap_right = <r>", "goal_x = <x>", "goal_y = <y>"),
        (
            "a door in the left wall at the height of <l>",
            "a door in the right wall at the height of <r>",
            "a goal whose horizontal coordinate is <x>",
            "a goal whose vertical coordinate is <y>",
        ),
        (
            "a hole in the western wall, ordinate <l>",
            "a hole in the eastern wall, ordinate <r>",
            "a target with abscissa <x>",
            "a target with ordinate <y>",
        ),
        ('"left_gap_y": <l>', '"right_gap_y": <r>', '"goal_x": <x>', '"goal_y": <y>'),
        (
            "the first wall pierced at y <l>",
            "the second wall pierced at y <r>",
            "the end of the way at x <x>",
            "the end of the way at y <y>",
        ),
        (
            "the gap of the left wall <|l|> {l:above|below} the middle",
            "the gap of the right wall <|r|> {r:above|below} the middle",
            "the goal <x> to the right of the middle",
            "the goal <|y|> {y:above|below} the middle",
        ),
        (
            "an opening <|l|> {l:north|south} in the west wall",
            "an opening <|r|> {r:north|south} in the east wall",
            "a destination <x> east",
            "a destination <|y|> {y:north|south}",
        ),
        ("--left-gap <l>", "--right-gap <r>", "--goal-x <x>", "--goal-y <y>"),
        (
            "the left doorway's y coordinate <l>",
            "the right doorway's y coordinate <r>",
            "the target's x coordinate <x>",
            "the target's y coordinate <y>",
        ),
        ("first gate: y <l>", "second gate: y <r>", "goal: x <x>", "goal: y <y>"),
        (
            "a left-hand wall with its gap at <l>",
            "a right-hand wall with its gap at <r>",
            "a goal with its x at <x>",
            "a goal with its y at <y>",
        ),
        ("y of the gap on the left: <l>", "y of the gap on the right: <r>", "x of the goal: <x>", "y of the goal: <y>"),
        (
            "<l> for the passage through the west wall",
            "<r> for the passage through the east wall",
            "<x> for the goal's easting",
            "<y> for the goal's northing",
        ),
        ("west door <l>", "east door <r>", "target x <x>", "target y <y>"),
        (
            "a way through the first wall <|l|> {l:up|down}",
            "a way through the second wall <|r|> {r:up|down}",
            "a goal <x> to the right",
            "a goal <|y|> {y:up|down}",
        ),
        (
            "door A (left wall) at y=<l>",
            "door B (right wall) at y=<r>",
            "the finish at x=<x>",
            "the finish at y=<y>",
        ),
        (
            "<l> as the height of the left passage",
            "<r> as the height of the right passage",
            "<x> as the horizontal position of the target",
            "<y> as the vertical position of the target",
        ),
        ("gap[left].y := <l>", "gap[right].y := <r>", "goal.x := <x>", "goal.y := <y>"),
        (
            "the near wall broken at y = <l>",
            "the far wall broken at y = <r>",
            "the treasure at x = <x>",
            "the treasure at y = <y>",
        ),
        (
            "a left opening that is centred on <l>",
            "a right opening that is centred on <r>",
            "a goal that lies at <x> on the x axis",
            "a goal that lies at <y> on the y axis",
        ),
        (
            "the {l:upper|lower} part of the left wall open, <|l|> from its middle",
            "the {r:upper|lower} part of the right wall open, <|r|> from its middle",
            "the target on the right, <x> from the middle",
            "the target in the {y:upper|lower} half, <|y|> from the middle",
        ),
    ),
)
VALIDATION = Parts(
    frames=(
        "Night watch, memorise this: {a}, {b}, {c}, {d}.",
        "scene: {a} -> {b} -> {c} -> {d}",
        "A blindfolded player hears {a}, {b}, {c} and {d}, and walks off.",
        "Ticket 771, access route: {a}; {b}; {c}; {d}.",
    ),
    phrases=(
        (
            "the wall on the left with a slot at y <l>",
            "the wall on the right with a slot at y <r>",
            "the prize at x <x>",
            "the prize at y <y>",
        ),
        ("west_gap <l>", "east_gap <r>", "target_x <x>", "target_y <y>"),
        (
            "a left exit <|l|> {l:above|below} centre",
            "a right exit <|r|> {r:above|below} centre",
            "a goal <x> right of centre",
            "a goal <|y|> {y:above|below} centre",
        ),
    ),
)
HELD_OUT = Parts(
    frames=(
        "Explorer, the old scroll reads: {a}. {b}. {c}. {d}.",
        "spawn_level(id=77; {a}; {b}; {c}; {d})",
        "On the phone he told me about {a}, {b}, {c} and {d}, then the line went dead.",
        "Fire drill at 10:30! {a}, {b}, {c}, {d}, hurry!",
        "Trust the following, {a}, {b}, {c}, {d}, for everything else is dark.",
    ),
    phrases=(
        (
            "a breach of the left wall at y = <l>",
            "a breach of the right wall at y = <r>",
            "the place to be at x = <x>",
            "the place to be at y = <y>",
        ),
        ("left_door_y <l>", "right_door_y <r>", "dest_x <x>", "dest_y <y>"),
        (
            "an entrance through the west wall, <|l|> {l:north|south} of its middle",
            "an entrance through the east wall, <|r|> {r:north|south} of its middle",
            "a goal <x> east of the middle",
            "a goal <|y|> {y:north|south} of the middle",
        ),
    ),
)
WRITINGS = (
    Writing("2"),
    Writing("2", " m"),
    Writing("+"),
    Writing("0 cm", " cm"),
    Writing("3"),
    Writing("words"),
    Writing("short", " metres"),
    Writing("2 exp"),
    Writing("1 cm", " centimetres"),
    Writing("0 words cm", " centimetres"),
    Writing("0 mm", " mm"),
)
EVERY = 2


@functools.cache
def gap_wordings() -> WordingSet:
    """All wordings of the two gaps and the goal."""
    return WordingSet(
        train=with_asides(compose(TRAIN, WRITINGS, EVERY)),
        validation=compose(VALIDATION, WRITINGS),
        held_out=compose(HELD_OUT, WRITINGS),
    )
