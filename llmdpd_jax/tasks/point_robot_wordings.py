"""How a task of point_robot is described: train wordings, composed of parts, and held-out ones, written apart.

The fields in braces are the phrases of a task (`point_robot.phrases`).
"""

# A train wording is a frame around two coordinates, named alike and in either order. So neither frame nor order gives
# away which number is which, and only reading the words beside a number does.
FRAMES = {
    "go": "Go to {a} and {b}.",
    "list": "{a}, {b}",
    "lies": "The goal lies at {a} and {b}, seen from the origin.",
    "target": "target: {a} | {b}",
    "find": "You will find the goal here: {a}; {b}.",
    "hidden": "There is a hidden goal: {a}, together with {b}. Be there soon.",
    "stop": "{a}. {b}. Stop there.",
    "reward": "The reward is highest at {a} and at {b}.",
    "bring": "Please bring the robot to the place with {a} as well as {b} and keep it there.",
    "brackets": "[{a}, {b}]",
    "polite": "Would you mind making your way over to {a} and {b}, whenever you have a moment?",
    "sticky_note": "Reminder for the robot: {a} / {b}, thanks!",
    "log": "[INFO] planner: new goal accepted ({a}; {b}), status=pending, retry=false",
    "call": "robot.move_to({a}, {b}); wait until arrived; return success",
    "config": "mission.goal = [{a} | {b}] # overrides the default target",
    "chat": "so the place we talked about is {a}, and also {b}, see you there lol",
    "tale": "Long ago a little machine dreamed of a meadow found at {a} and {b}, and tonight it sets out.",
    "formal": "The vehicle shall terminate its motion at the location defined by {a} in conjunction with {b}.",
    "question": "Can you drive to {a} and {b} without stopping along the way?",
    "battery": "Since the battery is fresh and everybody has gone home for the evening, please head for {a}, {b}.",
    "parcel": "Target is {a} and {b}, where a tired courier is waiting with a parcel that must be signed for.",
    "careful": "Proceed to {a}, {b}, taking care not to scrape the furniture or startle the cat.",
    "charger": "The charger can be found using {a}, and, if the old floor plan is still to be trusted, also {b}.",
    "radio": "We asked the operator for the goal and heard {a}; after some crackling the rest came through as {b}.",
    "rover": "Command to rover, your objective is {a}, break, {b}, acknowledge and execute immediately, over.",
    "maths": "Find a control sequence whose terminal state satisfies: {a}; {b}; subject to the usual dynamics.",
    "recipe": "Take the robot, add {a}, stir in {b}, and let it rest there until done.",
    "pirate": "The pirate map gives the clues {a} and {b}, so roll over there and start digging!",
    "growing": "Reward grows as the agent gets closer to the place given by {a} and {b}, and it peaks on arrival.",
    "guide": "Ladies and gentlemen, our next attraction lies at {a}, together with {b}, so kindly follow the guide.",
    "parent": "Sweetheart, be good and roll yourself to {a}, and do not forget {b}, before dinner gets cold.",
    "shell": 'navigate --mode=auto --goal "{a}, {b}" --speed=slow --verbose',
    "clause": "The contractor undertakes to deliver the unit to {a} and, without prejudice to the foregoing, {b}.",
}
COORDINATES = {
    "equals": ("x = {x}", "y = {y}"),
    "named": ("x {x}", "y {y}"),
    "json": ('"x": {x_plus}', '"y": {y_plus}'),
    "horizontal": ("horizontal {x}", "vertical {y}"),
    "coordinate": ("an x coordinate of {x_short}", "a y coordinate of {y_short}"),
    "abscissa": ("the abscissa {x}", "the ordinate {y}"),
    "abscissa_equal": ("an abscissa equal to {x_plus}", "an ordinate equal to {y_plus}"),
    "on_axis": ("{x_long} on the horizontal axis", "{y_long} on the vertical axis"),
    "is": ("its x is {x}", "its y is {y}"),
    "should_be": ("x should be {x}", "y should be {y}"),
    "offset": ("a sideways offset of {x_plus}", "a vertical offset of {y_plus}"),
    "value": ("{x} as the horizontal value", "{y} as the vertical value"),
    "keys": ("goal_x={x_short}", "goal_y={y_short}"),
    "spelled": ("x {x_words}", "y {y_words}"),
    "spelled_direction": ("{x_words} in the x direction", "{y_words} in the y direction"),
    "compass": ("{x_size} {east}", "{y_size} {north}"),
    "compass_first": ("{east} {x_size}", "{north} {y_size}"),
    "compass_units": ("{x_size} units towards the {east}", "{y_size} units towards the {north}"),
    "compass_distance": ("a distance of {x_size} {east}", "a distance of {y_size} {north}"),
    "compass_start": ("{x_size} {east} of the start", "{y_size} {north} of the start"),
    "compass_spelled": ("the {east} side at {x_size_words}", "the {north} side at {y_size_words}"),
    "sides": ("{x_size} to the {right}", "{y_size} {up}"),
    "sides_first": ("{right} by {x_size}", "{up} by {y_size}"),
    "sides_above": ("{x_size} {right} of it", "{y_size} {above} it"),
    "sides_centre": ("{x_size} {right} of centre", "{y_size} {above} centre"),
    "sides_spelled": ("{x_size_words} {right}", "{y_size_words} {up}"),
    "sides_units": ("{x_size_words} units {right}", "{y_size_words} units {up}"),
    "above_spelled": ("{x_size_words} to the {right}", "{y_size_words} {above}"),
}
FRAMES_APART = 7  # a way to name a coordinate meets every seventh frame: all meet many, and the LLM has less to read
PAIRS = {
    "navigate": "Navigate to position ({x}, {y})",
    "terse": "goal: [{x_long}, {y_long}]",
    "pair": "The reward is highest at the point ({x_plus}, {y_plus}).",
    "xy": "There is a hidden goal; it sits at (x, y) = ({x}, {y}), so be there soon.",
    "numbered": "First coordinate {x_short}, second coordinate {y_short}.",
    "spelled_pair": "Stay close to {x_words}, {y_words}.",
}

# Sentences of other builds, written apart from the train wordings and before any policy was scored on them. The ways to
# name a coordinate are partly those of train wordings ("0.31 to the left"): what is new is the sentence around them.
HELD_OUT_TEMPLATES = {
    "classroom": "Class, please walk the dot over to where the horizontal coordinate equals {x} and the vertical "
    "coordinate equals {y}.",
    "surveyor": "Set the marker stake {y_size} units {north} and {x_size} units {east} of the datum at the origin.",
    "ticket": "Expected behaviour: agent halts with pos.y == {y_plus} and pos.x == {x_plus}; stopping anywhere else "
    "counts as a failure.",
    "friend": "hey, come meet me {x_size} to the {right} and {y_size} {up} from where you're starting, ok?",
    "game_master": "Your token begins at the heart of the board; the treasure lies {y_size_words} units {above} it and "
    "{x_size_words} units to its {right}.",
    "protocol": "Translate the probe until its abscissa reads {x_words} and its ordinate reads {y_words}, then hold it "
    "stationary.",
    "dispatch": "Driver, leave the depot, head {x_size} units {east}, then {y_size} units {north}, and drop the parcel "
    "there.",
    "waypoint": "Waypoint ({x_short}, {y_short}) is your final destination.",
    "displacement": "Requesting a displacement of {y} along the y axis combined with {x} along the x axis, measured "
    "from the starting spot.",
    "choreographer": "From centre stage, drift {up} by {y_size}, slide {right} by {x_size}, and freeze on that mark "
    "when the music stops.",
}


def train_templates() -> dict[str, str]:
    """The pairs and every composed wording, by name."""
    composed = {
        f"{frame}_{name}_{order}": sentence.format(a=first, b=second)
        for i, (frame, sentence) in enumerate(FRAMES.items())
        for j, (name, (x, y)) in enumerate(COORDINATES.items())
        if (i - j) % FRAMES_APART == 0
        for order, first, second in (("xy", x, y), ("yx", y, x))
    }
    return PAIRS | composed
