"""What is to be done in each of Meta-World's 50 tasks, as clauses that sentences are built around.

The first train clause is the task's description in one phrase. Held-out clauses say the same by other verbs and nouns;
training never reads them.
"""

from typing import NamedTuple


class Clauses(NamedTuple):
    """Ways to say what to do, in the imperative and without a full stop."""

    train: tuple[str, str, str]
    held_out: tuple[str, str]


CLAUSES: dict[str, Clauses] = {
    "assembly-v3": Clauses(
        ("pick up the nut and put it onto the peg", "lift the ring nut over the peg", "place the nut on the peg"),
        ("thread the metal ring onto the upright pole", "fit the nut around the post"),
    ),
    "basketball-v3": Clauses(
        ("dunk the ball into the basket", "drop the basketball through the hoop", "carry the ball to the hoop"),
        ("score by letting the ball fall into the net", "lift the round thing and release it above the ring"),
    ),
    "bin-picking-v3": Clauses(
        (
            "move the cube from its bin to the other",
            "take the block out of its bin and put it in the next",
            "pick the cube and drop it into the other bin",
        ),
        ("transfer the small box between the containers", "empty the full tray into the empty tray"),
    ),
    "box-close-v3": Clauses(
        ("close the box with its lid", "pick up the cover and put it on the box", "put the lid on the box"),
        ("grab the handle of the cover and shut the container with it", "cap the open crate"),
    ),
    "button-press-topdown-v3": Clauses(
        ("press the button from above", "push the button down from the top", "come from above and press the button"),
        ("descend onto the red knob until it gives way", "tap the switch vertically"),
    ),
    "button-press-topdown-wall-v3": Clauses(
        (
            "get over the wall and press the button from above",
            "pass the wall and push the button down from the top",
            "press the button behind the wall from above",
        ),
        ("clear the barrier, then descend onto the red knob", "tap the switch vertically, minding the obstacle"),
    ),
    "button-press-v3": Clauses(
        ("press the button in front of you", "push the button in", "move forward and press the button"),
        ("poke the red knob on the side of its housing", "shove the switch away from you until it clicks"),
    ),
    "button-press-wall-v3": Clauses(
        (
            "get past the wall and press the button",
            "go over the wall and push the button in",
            "press the button behind the wall",
        ),
        ("work your way round the barrier and poke the red knob", "reach behind the obstacle to shove the switch"),
    ),
    "coffee-button-v3": Clauses(
        (
            "press the button of the coffee machine",
            "push the button on the coffee maker",
            "start the coffee machine by its button",
        ),
        ("get an espresso brewing", "poke the brewer's start switch"),
    ),
    "coffee-pull-v3": Clauses(
        (
            "pull the mug away from the coffee machine",
            "drag the cup out from under the coffee machine",
            "take the mug off the coffee maker",
        ),
        ("retrieve the drink from the brewer", "slide the beaker back towards the robot"),
    ),
    "coffee-push-v3": Clauses(
        ("push the mug under the coffee machine", "move the cup to the coffee machine", "put the mug below the spout"),
        ("slide the beaker in where the brewer pours", "get the empty cup ready to be filled"),
    ),
    "dial-turn-v3": Clauses(
        ("turn the dial", "rotate the dial halfway round", "twist the dial round"),
        ("spin the round control about its axis", "crank the rotary knob"),
    ),
    "disassemble-v3": Clauses(
        ("take the nut off the peg", "pick up the nut and remove it from the peg", "lift the ring nut off the peg"),
        ("strip the upright pole of its metal ring", "undo the assembly by raising the nut clear of the post"),
    ),
    "door-close-v3": Clauses(
        ("close the door", "push the door shut", "swing the door closed on its hinge"),
        ("shut it so that nobody sees the inside of the safe", "bring the hinged panel back to its frame"),
    ),
    "door-lock-v3": Clauses(
        (
            "lock the door by turning its lock",
            "rotate the lock of the door clockwise",
            "turn the lock to lock the door",
        ),
        ("bolt the safe", "secure the entrance with the latch"),
    ),
    "door-open-v3": Clauses(
        ("open the door", "pull the door open by its handle", "swing the door open on its hinge"),
        ("let us look inside the safe", "draw the hinged panel out of its frame"),
    ),
    "door-unlock-v3": Clauses(
        (
            "unlock the door by turning its lock",
            "rotate the lock of the door counterclockwise",
            "turn the lock to unlock the door",
        ),
        ("unbolt the safe", "release the latch of the entrance"),
    ),
    "hand-insert-v3": Clauses(
        ("insert the gripper into the hole", "put the hand into the hole", "lower the gripper into the hole"),
        ("dip the fingers into the opening of the table", "reach down inside the cavity"),
    ),
    "drawer-close-v3": Clauses(
        ("close the drawer", "push the drawer shut", "push the drawer in"),
        ("slide the tray of the cabinet home", "shut the compartment"),
    ),
    "drawer-open-v3": Clauses(
        ("open the drawer", "pull the drawer open by its handle", "pull the drawer out"),
        ("slide the tray out of the cabinet", "draw the compartment towards the robot"),
    ),
    "faucet-open-v3": Clauses(
        ("turn the faucet on", "rotate the faucet counterclockwise", "open the faucet"),
        ("let the water run", "swing the lever of the tap away to start the flow"),
    ),
    "faucet-close-v3": Clauses(
        ("turn the faucet off", "rotate the faucet clockwise", "close the faucet"),
        ("stop the water", "swing the lever of the tap back to end the flow"),
    ),
    "hammer-v3": Clauses(
        ("hammer the nail into the wall", "pick up the hammer and hit the nail", "drive the nail in with the hammer"),
        ("knock the spike into the board", "strike with the mallet until the pin is flush"),
    ),
    "handle-press-side-v3": Clauses(
        ("press the handle down sideways", "push the handle at the side down", "press down the handle beside you"),
        ("lower the bar that sticks out laterally", "weigh on the sideways lever until it sinks"),
    ),
    "handle-press-v3": Clauses(
        ("press the handle down", "push the handle downwards", "press down the handle in front of you"),
        ("lower the bar that sticks out ahead", "weigh on the lever until it sinks"),
    ),
    "handle-pull-side-v3": Clauses(
        ("pull the handle up sideways", "lift the handle at the side", "pull up the handle beside you"),
        ("raise the bar that sticks out laterally", "hoist the sideways lever until it stops"),
    ),
    "handle-pull-v3": Clauses(
        ("pull the handle up", "lift the handle", "pull up the handle in front of you"),
        ("raise the bar that sticks out ahead", "hoist the lever until it stops"),
    ),
    "lever-pull-v3": Clauses(
        ("pull the lever up", "turn the lever upwards", "pull at the lever until it points up"),
        ("flip the long switch skywards", "raise the crank upright"),
    ),
    "peg-insert-side-v3": Clauses(
        (
            "insert the peg into the hole from the side",
            "pick up the peg and put it sideways into the hole",
            "push the peg into the hole in the side of the box",
        ),
        ("plug the lateral opening with the rod", "slot the stick horizontally into the block"),
    ),
    "pick-place-wall-v3": Clauses(
        (
            "pick up the puck, carry it over the wall and place it at the goal",
            "lift the puck past the wall to the goal",
            "pick the puck and place it behind the wall",
        ),
        ("grasp the disc, clear the barrier and hold it where it belongs", "hoist the cylinder across the obstacle"),
    ),
    "pick-out-of-hole-v3": Clauses(
        (
            "pick the puck out of the hole",
            "take the puck out of the hole and bring it to the goal",
            "lift the puck from the hole",
        ),
        ("fetch the disc from the cavity", "recover the cylinder that fell in"),
    ),
    "reach-v3": Clauses(
        ("reach the goal with the gripper", "move the hand to the goal", "bring the gripper to the goal position"),
        ("let the fingertips hover at the target", "steer the end effector to the marked spot"),
    ),
    "push-back-v3": Clauses(
        (
            "push the puck back to the goal",
            "push the puck towards yourself to the goal",
            "move the puck backwards to the goal",
        ),
        ("drag the disc nearer to the robot's base", "shove the cylinder in the direction of the robot"),
    ),
    "push-v3": Clauses(
        ("push the puck to the goal", "slide the puck along the table to the goal", "move the puck to the goal"),
        ("shove the disc over to the target", "nudge the cylinder across the surface to the marked spot"),
    ),
    "pick-place-v3": Clauses(
        (
            "pick up the puck and place it at the goal",
            "lift the puck to the goal",
            "grasp the puck and carry it to the goal",
        ),
        (
            "raise the disc and hold it at the target",
            "take the cylinder in the fingers and bring it to the marked spot",
        ),
    ),
    "plate-slide-v3": Clauses(
        (
            "slide the plate into the cabinet",
            "push the plate forward into the cabinet",
            "move the plate into the cabinet",
        ),
        ("shove the dish into the cupboard", "score a goal with the flat disc ahead"),
    ),
    "plate-slide-side-v3": Clauses(
        (
            "slide the plate sideways into the cabinet",
            "push the plate to the side into the cabinet",
            "move the plate sideways into the cabinet",
        ),
        ("shove the dish laterally into the cupboard", "score a goal with the flat disc at the flank"),
    ),
    "plate-slide-back-v3": Clauses(
        (
            "slide the plate back out of the cabinet",
            "pull the plate back towards yourself",
            "get the plate back from the cabinet",
        ),
        ("draw the dish out of the cupboard", "retrieve the flat disc from the net"),
    ),
    "plate-slide-back-side-v3": Clauses(
        (
            "slide the plate sideways out of the cabinet",
            "pull the plate back to the side",
            "get the plate out of the cabinet sideways",
        ),
        ("draw the dish laterally out of the cupboard", "retrieve the flat disc from the net at the flank"),
    ),
    "peg-unplug-side-v3": Clauses(
        ("unplug the peg sideways", "pull the peg out of the hole in the side", "take the peg out of the box sideways"),
        ("draw the rod from the lateral opening", "disconnect the stick from the block"),
    ),
    "soccer-v3": Clauses(
        ("kick the ball into the goal", "push the ball into the soccer goal", "move the soccer ball into the goal"),
        ("score with the football", "roll the round thing between the posts"),
    ),
    "stick-push-v3": Clauses(
        (
            "grasp the stick and push the bottle with it",
            "push the box to the goal with the stick",
            "pick up the stick and use it to push the container",
        ),
        ("take the rod as a tool and shove the thermos away", "poke the canister along by means of the bar"),
    ),
    "stick-pull-v3": Clauses(
        (
            "grasp the stick and pull the bottle with it",
            "pull the box to the goal with the stick",
            "pick up the stick and use it to pull the container",
        ),
        ("take the rod as a tool and hook the thermos closer", "drag the canister along by means of the bar"),
    ),
    "push-wall-v3": Clauses(
        (
            "push the puck around the wall to the goal",
            "get past the wall and push the puck to the goal",
            "move the puck behind the wall to the goal",
        ),
        ("shove the disc along, avoiding the barrier", "nudge the cylinder across the surface, minding the obstacle"),
    ),
    "reach-wall-v3": Clauses(
        (
            "get over the wall and reach the goal with the gripper",
            "pass the wall and move the hand to the goal",
            "reach the goal behind the wall",
        ),
        ("clear the barrier, then let the fingertips hover at the target", "steer the end effector past the obstacle"),
    ),
    "shelf-place-v3": Clauses(
        ("pick up the block and place it on the shelf", "put the cube onto the shelf", "lift the puck onto the shelf"),
        ("store the small box on the rack", "set the thing down up on the board"),
    ),
    "sweep-into-v3": Clauses(
        ("sweep the puck into the hole", "push the puck into the hole in the table", "sweep the puck over to the hole"),
        ("brush the disc down the opening", "make the cylinder fall into the cavity"),
    ),
    "sweep-v3": Clauses(
        ("sweep the puck off the table", "push the puck over the edge of the table", "sweep the block off the table"),
        ("brush the disc aside until it drops", "clear the surface of the cylinder"),
    ),
    "window-open-v3": Clauses(
        ("open the window", "push the window open", "slide the window to the side to open it"),
        ("let fresh air in", "move the sash along its rail away from the frame"),
    ),
    "window-close-v3": Clauses(
        ("close the window", "push the window shut", "slide the window back to close it"),
        ("keep the cold out", "move the sash along its rail back to the frame"),
    ),
}
