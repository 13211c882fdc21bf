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
    "{a} is what the harbour master ordered.",
    "Captain's log, day 12: we sail with {a} until dusk.",
    "Tower to flight 708, continue with {a}, over.",
    "Let the robot leave the origin with {a}.",
    "Line 3 of the form, direction of travel: {a}",
    "Mum said {a}, and then run as far as you can!",
    "# TODO(id 4411): make the agent move with {a}",
    "After the hut, 2 miles from the car park, hikers carry on with {a}.",
    "Problem 9. A point leaves the origin with {a}. Trace its path.",
    "With {a} you will get out of the forest; any other way leads back into it.",
    "2024-05-17 08:41:03 nav: new target received, {a}",
    "{a}, please, and as far out as possible.",
    "Score is given for ground covered with {a}; sideways motion earns nothing.",
    "mission.json -> leg[0] -> {a}",
    "The treasure lies far away: take {a} and count 900 paces.",
    "Robot 15 and its 3 helpers were told to advance with {a}.",
    "ok so basically just keep moving with {a} forever",
    "SELECT policy WHERE task IS '{a}';",
    "It is requested that the unit depart with {a} at 0600 hours.",
    "Should anyone ask which way you are off to, answer: {a}.",
    "{a} -- that, and nothing else, is the way to go.",
    "Imagine an endless plain. Cross it with {a}, never looking over your shoulder.",
    "From the campfire, the 7 scouts march off with {a} in single file.",
    "assert agent.travels({a}), 'wrong way'",
    "The ball, 22 centimetres wide, should roll away from the middle with {a}.",
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
        ("<angle> anticlockwise from due east",),
        ("<angle> ccw from the +x axis",),
        ("arg(dx + i*dy) = <angle>",),
        ("alpha = <angle>, mathematically positive from the x axis",),
        ("east, turned leftwards by <angle>",),
        ("a left turn of <angle> out of due east",),
        ("a ray at <angle> to the positive x direction, counted anticlockwise",),
        ("theta_goal: <angle>",),
        ("an arrow laid along the x axis and then spun <angle> against the hands of the clock",),
        ("<angle> round from east by way of north",),
        ("a polar coordinate theta that equals <angle>",),
        ("where you look when you face east and turn left by <angle>",),
        ("atan2(y, x) == <turn>",),
        ("set_yaw(<turn>)",),
        ("yaw_cmd=<turn>",),
        ("an orientation of <turn>, counterclockwise from east being positive",),
        ("psi = <turn> (CCW from +x)",),
        ("<|turn|> to the {turn:left|right} of due east",),
        ("<|turn|> {turn:anticlockwise|clockwise} of the positive x axis",),
        ("an azimuth of <bearing>",),
        ("--azimuth <bearing>",),
        ("<bearing> cw from due north",),
        ("<bearing> clockwise, counted from the y axis",),
        ("ground track <bearing> true",),
        ("COG <bearing>",),
        ("a compass course of <bearing>",),
        ("<bearing> to the right of straight north",),
        ("a right-hand turn of <bearing>, starting out of north",),
        ("a nose that points at <bearing> on the compass rose",),
        ("az: <bearing> (N = 0, CW)",),
        ('"bearing_cw_from_north": <bearing>',),
        ("north rotated to the right by <bearing>",),
        ("an azimuth, read clockwise off the +y direction, of <bearing>",),
        ("a clock hand that has swept <bearing> past its twelve, which is north",),
        ("steering <bearing> by the compass",),
        ("<bearing> of azimuth",),
        ("a bearing, taken from north by way of east, of <bearing>",),
        ("<offset> away from {axis}, on the {towards} side",),
        ("<offset> between your path and due {axis}, the path lying to the {towards}",),
        ("a line tilted <offset> out of {axis} in the direction of {towards}",),
        ("a track <offset> to the {towards} of due {axis}",),
        ("a trail <offset> on the {towards} side of straight {axis}",),
        ("<offset> {towards}ward of {axis}",),
        ("a path <offset> closer to {towards} than due {axis} is",),
        ("quadrant bearing {axis} <offset> {towards}",),
        ("due {axis} swung <offset> towards {towards}",),
        ("{axis} as the base line, then <offset> over to the {towards}",),
        ("axis={axis}, dev=<offset>, side={towards}",),
        ("the {towards}ward deviation of <offset> from {axis}",),
        ("a lean to the {towards}, <offset> off true {axis}",),
        ("{towards}wards by <offset> relative to exact {axis}",),
        ("some {towards} mixed in, <offset> away from pure {axis}",),
        ("{axis} shifted to the {towards} by <offset>",),
        ("a course that leaves {axis} for {towards} by <offset>",),
        ("a way between {axis} and {towards} whose angle to {axis} is <offset>",),
        ("turn(start='{axis}', towards='{towards}', by=<offset>)",),
        ("to the {towards} of {axis} by <offset>",),
        ("the {towards} side of {axis}, at an angle to it of <offset>",),
        ("{towards} of {axis}: <offset>",),
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
        ("<dx> eastwards and <dy> northwards per unit of way",),
        ("{clock:2} o'clock on a dial with twelve at north",),
        ("direction = <dx>*e_x + <dy>*e_y",),
        ("a displacement proportional to (<dx>; <dy>)",),
        ("the complex direction <dx> + (<dy>)i",),
        ("np.array([<dx>, <dy>])",),
        ("an east part of <dx> with a north part of <dy>",),
        ("a cosine of <dx> and a sine of <dy> for the heading",),
        ("<dy> north for each <dx> east",),
        ("the mark {clock:2} of a watch whose twelve lies north",),
        ("clock={clock:2}",),
        ("along y: <dy>; along x: <dx>",),
        ("motion whose y share is <dy> and whose x share is <dx>",),
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
    # Written by someone who had seen nothing of this project; no choice was made by them.
    whole=(
        "Set off along the ray that makes an angle of <angle> with the positive x axis, counted counterclockwise.",
        'set_heading("<angle>")  # ccw from east, then walk',
        "Pretend you are looking east, then spin to your left by <angle>, and run that way, okay?",
        "MOVEMENT REQUEST | Reference direction: due east | Sense: anticlockwise | Direction of travel: <angle>",
        "Per the spec, the polar angle theta of the velocity vector is to be <angle>, in the "
        "standard mathematical convention.",
        "Patrol bot, from 06:45 steer a compass bearing of <bearing> and report, over.",
        "My dear Captain, pray keep her on a course of <bearing> clockwise from true north until you hear from me.",
        "my compass app shows azimuth <bearing>, so just keep walking that way mate",
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
EVERY = 11


@functools.cache
def direction_wordings() -> WordingSet:
    """All wordings of a heading."""
    return WordingSet(
        train=compose(TRAIN, WRITINGS, EVERY) + compose(TRAIN_UNITLESS, UNITLESS_WRITINGS, EVERY),
        validation=compose(VALIDATION, WRITINGS) + compose(VALIDATION_UNITLESS, UNITLESS_WRITINGS),
        held_out=compose(HELD_OUT, WRITINGS) + compose(HELD_OUT_UNITLESS, UNITLESS_WRITINGS),
        unseen_unit=compose(TRAIN, UNSEEN_UNIT, 53),
        unknown_unit=compose(TRAIN, UNKNOWN_UNIT, 53),
        unseen_precision=compose(TRAIN, UNSEEN_PRECISION, 53),
    )
