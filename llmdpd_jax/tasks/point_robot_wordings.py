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
}
