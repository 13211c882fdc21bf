"""Wordings of how a robot differs from its usual self: in mass, inertia, damping of its joints, friction of the ground.

Fields: `m`, `i`, `d` and `f` are the factors, 1 being as usual; `mm`, `ii`, `dd` and `ff` how far they are from 1,
whose signs say which of two words suits. Sentences are of three kinds: "<m> the usual mass" (TRAIN_RATIOS), "mass
factor <m>" (TRAIN_FACTORS), and "<|mm|> more|less mass" (TRAIN_CHANGES).
"""

import functools

from llmdpd_jax.tasks.wording import Parts, WordingSet, Writing, compose

_FRAMES = (
    "The robot has {a}, {b}, {c} and {d}. Get ahead as fast as you can.",
    "{a}, {b}, {c}, {d}",
    "Today's body: {a}; {b}; {c}; {d}.",
    "Run forward without falling, with {a}, {b}, {c} and {d}.",
    "Robot 7 left the workshop with {a}, {b}, {c} and {d}; see how far it gets in 200 steps.",
    "params = [{a}, {b}, {c}, {d}]",
    "Somebody rebuilt the machine. It now has {a} and {b}, and there are {c} and {d} as well.",
    "Please hop along; expect {a}, {b}, {c}, {d}.",
    "[INFO] model loaded in 12 ms: {a} :: {b} :: {c} :: {d}",
    "With {a} and {b} you have to move differently, not to forget {c} and {d}.",
    "Work order 4417. Configuration: {a}; {b}; {c}; {d}. Target: the far end of the hall.",
    "hey, bit of a strange one today: {a}, {b}, {c}, {d}. keep going anyway ok?",
    "The simulation was altered: {a}, {b}, {c}, and finally {d}.",
    "Move ahead quickly and stay upright. What differs from last week: {a}, {b}, {c}, {d}.",
    "<robot>{a} | {b} | {c} | {d}</robot>",
    "On planet 3 everything is odd: {a}, {b}, {c} and {d}, yet the race goes on.",
    "The mechanic's note reads: {a}, {b}, {c}, {d}.",
    "Given {a}, {b}, {c} and {d}, go forward for 15 seconds.",
    "Your legs carry you through a world with {a}, {b}, {c} and {d}.",
    "# variant 9 of 50: {a}, {b}, {c}, {d}",
    "Do not trust your habits: there is {a}, there is {b}, there is {c}, and there is {d}.",
    "The trainer has prepared {a}, {b}, {c} and {d}, so adapt your gait.",
    "Test bench 2, run 31: {a}, {b}, {c}, {d}; distance counts.",
    "A walk is asked for under unusual physics, namely {a}, {b}, {c} and {d}.",
    "{a} and {b}: that is the body. {c} and {d}: that is the rest.",
    "Dear robot, from now on you live with {a}, {b}, {c} and {d}. Run!",
    "make_env({a}, {b}, {c}, {d})",
    "Whoever designed this had {a}, {b}, {c} and {d} in mind; make headway all the same.",
    "Exam question 5. A legged system with {a}, {b}, {c} and {d} must advance. How?",
    "After the update at 9 o'clock the engine reports {a}, {b}, {c} and {d}.",
)
TRAIN_RATIOS = Parts(
    frames=_FRAMES,
    phrases=(
        ("<m> the usual mass", "<i> the usual inertia", "<d> the usual damping", "<f> the usual friction"),
        ("<m> the normal weight", "<i> the normal inertia", "<d> the normal damping", "<f> the normal grip"),
        (
            "bodies of <m> their standard mass",
            "bodies of <i> their standard moment of inertia",
            "joints of <d> their standard damping",
            "a floor of <f> its standard friction",
        ),
        (
            "<m> the original body mass",
            "<i> the original rotational inertia",
            "<d> the original joint damping",
            "<f> the original ground friction",
        ),
        (
            "a weight <m> the default",
            "an inertia <i> the default",
            "a damping <d> the default",
            "a grip <f> the default",
        ),
        (
            "<m> the mass it had before",
            "<i> the inertia it had before",
            "<d> the joint damping it had before",
            "<f> the friction it had before",
        ),
        (
            "links <m> the nominal mass",
            "links <i> the nominal inertia",
            "hinges <d> the nominal damping",
            "soles <f> the nominal friction",
        ),
        ("mass at <m> the norm", "inertia at <i> the norm", "damping at <d> the norm", "friction at <f> the norm"),
        (
            "a total mass <m> the ordinary one",
            "a moment of inertia <i> the ordinary one",
            "joint damping <d> the ordinary one",
            "ground friction <f> the ordinary one",
        ),
        (
            "<m> what it weighs as a rule",
            "<i> what its inertia is as a rule",
            "<d> what its damping is as a rule",
            "<f> what friction is as a rule",
        ),
    ),
)
TRAIN_FACTORS = Parts(
    frames=_FRAMES,
    phrases=(
        ("mass factor <m>", "inertia factor <i>", "damping factor <d>", "friction factor <f>"),
        ("mass = <m>", "inertia = <i>", "damping = <d>", "friction = <f>"),
        ("mass x <m>", "inertia x <i>", "damping x <d>", "friction x <f>"),
        ('"mass": <m>', '"inertia": <i>', '"damping": <d>', '"friction": <f>'),
        (
            "body mass multiplied by <m>",
            "body inertia multiplied by <i>",
            "joint damping multiplied by <d>",
            "ground friction multiplied by <f>",
        ),
        ("a mass scale of <m>", "an inertia scale of <i>", "a damping scale of <d>", "a friction scale of <f>"),
        ("mass scaled by <m>", "inertia scaled by <i>", "damping scaled by <d>", "friction scaled by <f>"),
        ("body_mass: <m>", "body_inertia: <i>", "dof_damping: <d>", "geom_friction: <f>"),
        ("--mass <m>", "--inertia <i>", "--damping <d>", "--friction <f>"),
        (
            "a relative mass equal to <m>",
            "a relative inertia equal to <i>",
            "a relative damping equal to <d>",
            "a relative friction equal to <f>",
        ),
        (
            "a multiplier of <m> on weight",
            "a multiplier of <i> on rotational inertia",
            "a multiplier of <d> on joint damping",
            "a multiplier of <f> on traction",
        ),
        ("m_scale=<m>", "i_scale=<i>", "d_scale=<d>", "f_scale=<f>"),
    ),
)
# Each names one of sixteen combinations of words, so few sentences are enough for the LLM to read.
TRAIN_CHANGES = Parts(
    frames=(),
    phrases=(),
    whole=(
        "A robot <|mm|> {mm:heavier|lighter} than usual, its inertia <|ii|> {ii:larger|smaller}, its joints <|dd|> "
        "{dd:stiffer|looser}, on ground <|ff|> {ff:rougher|more slippery}: go ahead.",
        "Mass {mm:up|down} <|mm|>, inertia {ii:up|down} <|ii|>, damping {dd:up|down} <|dd|>, friction {ff:up|down} "
        "<|ff|>.",
        "There is <|ff|> {ff:more|less} grip, <|dd|> {dd:more|less} damping in the joints, <|ii|> {ii:more|less} "
        "inertia and <|mm|> {mm:more|less} mass than on any other day; run.",
    ),
)
VALIDATION = Parts(
    frames=(
        "Brief for runner 14 -> {a}, {b}, {c}, {d}.",
        "Cross the yard on foot; the constants were set to {a}, {b}, {c} and {d} by the lab.",
        "You wake up and find {a}, {b}, {c}, {d}. March.",
        "load_preset({a}; {b}; {c}; {d}; verbose=1)",
        "Our prototype shows {a} next to {b}, {c} next to {d}.",
    ),
    phrases=(
        (
            "a heaviness coefficient of <m>",
            "a coefficient of <i> for inertia",
            "a coefficient of <d> for damping",
            "a traction coefficient of <f>",
        ),
        ("rel. mass <m>", "rel. inertia <i>", "rel. damping <d>", "rel. friction <f>"),
        ("weight := <m>", "inertia := <i>", "joint_damping := <d>", "ground_friction := <f>"),
    ),
)
HELD_OUT = Parts(
    frames=(
        "Forward march, soldier! Your gear: {a}, {b}, {c}, {d}.",
        "spawn(robot, {a}, {b}, {c}, {d}, seed=88)",
        "In chapter 6 the hero limps on though it has {a}, {b}, {c} and {d}.",
        "Physics sheet | {a} | {b} | {c} | {d} | signed by 2 engineers",
        "Nobody told you, but you were given {a} plus {b} plus {c} plus {d}.",
    ),
    phrases=(
        ("a load ratio of <m>", "a spin-resistance ratio of <i>", "a joint-drag ratio of <d>", "a grip ratio of <f>"),
        ("massiveness <m>", "rotational laziness <i>", "hinge resistance <d>", "surface stickiness <f>"),
        ("k_mass <m>", "k_inertia <i>", "k_damping <d>", "k_friction <f>"),
    ),
)
RATIO_WRITINGS = (
    Writing("2", " times"),
    Writing("0 percent", " percent of"),
    Writing("2 words", " times"),
    Writing("1 percent", " % of"),
    Writing("2", "x"),
    Writing("3", " times"),
    Writing("0 words percent", " percent of"),
    Writing("short", " times"),
    Writing("0 percent", "% of"),
)
FACTOR_WRITINGS = (
    Writing("2"),
    Writing("0 percent", " %"),
    Writing("2 words"),
    Writing("3"),
    Writing("2 exp"),
    Writing("1 percent", " percent"),
    Writing("short"),
    Writing("0 words percent", " percent"),
)
CHANGE_WRITINGS = (Writing("0 percent", " %"), Writing("1 percent", " percent"), Writing("0 words percent", " percent"))
EVERY = 3


@functools.cache
def dynamics_wordings() -> WordingSet:
    """All wordings of a robot's factors."""
    return WordingSet(
        train=(
            *compose(TRAIN_RATIOS, RATIO_WRITINGS, EVERY),
            *compose(TRAIN_FACTORS, FACTOR_WRITINGS, EVERY),
            *compose(TRAIN_CHANGES, CHANGE_WRITINGS),
        ),
        validation=compose(VALIDATION, FACTOR_WRITINGS),
        held_out=compose(HELD_OUT, FACTOR_WRITINGS),
    )
