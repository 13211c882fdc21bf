"""How point_robot is described: held-out wordings. Train wordings are those of `wordings.point`.

The fields in braces are the phrases of a task (`point_robot.phrases`).
"""

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
    # Written later by someone who had seen nothing of this project; among them are words for a side that no train
    # wording has.
    "ticket_closed": "Acceptance criterion: after the run the drive base is at rest at x = {x} m, y = {y} m relative "
    "to its power-on location.",
    "scoot": "Hey robot, can you scoot {x:size} meters to the {x:right|left} and then {y:size} meters {y:up|down} "
    "and stay there? Pretty please!",
    "letter": "Dear Sir, I should be most obliged if your machine would settle {y:size} metres to the "
    "{y:north|south} and {x:size} metres to the {x:east|west} of where it first stands. Yours faithfully,"
    " Mrs. Pemberton",
    "coach": "Come on, hustle! I want you planted {x:size} m {x:eastward|westward} of the start mark, with "
    "{y:size} m of {y:northing|southing} on top of that!",
    "form": "DELIVERY FORM | Destination ordinate (y): {y} | Destination abscissa (x): {x} | Units: metres",
    "call": "robot.go_to(y={y}, x={x})  # world frame, origin at the start pose",
    "base": "Rover, this is Base: proceed to easting {x}, northing {y}, and hold position, over.",
    "clause": "The Device shall, no later than 17:00, be situated at a point whose horizontal coordinate equals {x}"
    " and whose vertical coordinate equals {y}, both expressed in metres from the Origin.",
    "final_spot": "lol ok so the final spot is ({x}, {y}), usual x-then-y order, just park urself there",
    "top_edge": "From where you woke, the treasure lies {y:size} of a metre toward the {y:top|bottom} edge of the map"
    " and {x:size} of a metre toward its {x:right-hand|left-hand} edge; go and stand on it.",
    "task_json": '{{"task": "reach", "target": {{"north_m": {y}, "east_m": {x}}}}}',
    "wander": "Wherever you wander in between, your x-coordinate ought to end up being {x}, while for y we need {y}.",
    "stage": "Actors, places! Robot, your mark is on the {y:northern|southern} side of the spot where you begin, "
    "{y:size} m from the east-west line through it, and on the {x:eastern|western} side, {x:size} m from "
    "the north-south line.",
    "vector": "Minimise your distance to the planar vector whose first component is {x} and whose second component "
    "is {y}.",
}
