"""How Meta-World's tasks are described: what to do, and where its goal lies.

Fields: `do` and `Do`, a clause of `clauses.py`, small and with a capital letter; `x` (to the right), `y` (forward) and
`z` (up), the goal's position in metres as seen from the robot's base.
"""

import functools
import itertools

from llmdpd_jax.tasks.metaworld.clauses import CLAUSES
from llmdpd_jax.tasks.wording import Parts, Quantity, Writing, compose

TRAIN = Parts(
    frames=(
        "{{Do}}. The goal is at {a}.",
        "{{Do}}; the goal is {a}.",
        "Task: {{do}}. Goal: {a}",
        "Please {{do}}. What counts is the point {a}.",
        "With the goal at {a}, {{do}}.",
        "goal: {a}; {{do}}",
        "Your job is to {{do}}, and the target lies at {a}.",
        "Sawyer, {{do}}. Target: {a}.",
        "The robot arm has to {{do}}. It ends at {a}.",
        "Could you {{do}}? The goal lies at {a}.",
        "{a} is where it should end: {{do}}.",
        "Within 500 steps, {{do}}. Goal position: {a}.",
        "Robot 3: {{do}}. Destination {a}.",
        "Goal {a}. Now {{do}}.",
        "[INFO] new task: {{do}}; target {a}",
        "Reward is paid for this: {{do}}. The place is {a}.",
        "Experiment 12. {{Do}}. The desired position is {a}.",
    ),
    phrases=(
        ("x = <x>, y = <y>, z = <z>",),
        ("(<x>, <y>, <z>)",),
        ("[<x>, <y>, <z>]",),
        ("x <x>, y <y> and z <z>",),
        ("y = <y>, x = <x>, z = <z>",),
        ("z = <z>, x = <x>, y = <y>",),
        ("height <z>, sideways <x>, forward <y>",),
        ("<y> ahead of the robot, <|x|> to the {x:right|left}, at a height of <z>",),
        ("<|x|> {x:right|left}, <y> forward, <z> up",),
        ("forward <y>, up <z>, {x:right|left} <|x|>",),
        ('"x": <x>, "y": <y>, "z": <z>',),
        ("an x coordinate of <x>, a y coordinate of <y> and a height of <z>",),
        ("goal_x=<x> goal_y=<y> goal_z=<z>",),
        ("<z> high, <y> forward and <|x|> to the {x:right|left}",),
    ),
)
HELD_OUT = Parts(
    frames=(
        "We would be glad if the arm could {{do}}, the place in question having {a}.",
        "Ticket 4471: operator wants the manipulator to {{do}} -- coordinates as follows: {a}.",
        "Once a robot was told to {{do}}, and the map said {a}.",
        "assert finished('{{do}}', where='{a}')",
        "Everything hinges on {a}, for that is the spot at which you are to {{do}}.",
        "Look, just {{do}}, ok? Somewhere around {a}.",
        "FORM 7 | Work to be carried out: {{do}} | Location: {a}",
        "Before the shift ends, {{do}}, bearing in mind {a}.",
    ),
    phrases=(
        ("<y> along the y axis, <x> along the x axis and <z> along the z axis",),
        ("lateral offset <x> at depth <y> with elevation <z>",),
        ("elevation <z>, depth <y>, <|x|> on the {x:right-hand|left-hand} side",),
        ("first component <x>, second component <y>, third component <z>",),
        ("the vector <x>, <y>, <z> of right, forward and up",),
        ("<|x|> {x:rightwards|leftwards}, <z> upwards, <y> away from the base",),
    ),
)
WRITINGS = (
    Writing("3"),
    Writing("3", " m"),
    Writing("1 cm", " cm"),
    Writing("2"),
    Writing("3", " metres"),
    Writing("+ 3"),
    Writing("1 cm", " centimetres"),
    Writing("0 mm", " mm"),
    Writing("0 cm", "cm"),
)
EVERY, EVERY_HELD_OUT = 6, 3  # a phrase meets every sixth frame


@functools.cache
def _templates(held_out: bool) -> tuple[str, ...]:
    return compose(HELD_OUT, WRITINGS, EVERY_HELD_OUT) if held_out else compose(TRAIN, WRITINGS, EVERY)


def describe_scene(scene: str, goal: tuple[float, float, float], *, held_out: bool) -> tuple[str, ...]:
    """One description for each clause in each train (or each held-out) wording; always the same.

    Args:
        scene: a name of Meta-World's, "push-v3".
        goal: x, y and z in metres.
    """
    clauses = CLAUSES[scene].held_out if held_out else CLAUSES[scene].train
    numbers = dict(zip("xyz", map(Quantity, goal), strict=True))
    return tuple(
        template.format(do=clause, Do=clause[0].upper() + clause[1:], **numbers)
        for template, clause in itertools.product(_templates(held_out), clauses)
    )
