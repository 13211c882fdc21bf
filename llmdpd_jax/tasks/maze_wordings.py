"""How maze is described: sentences of `wordings.point` about the goal, with a word on which maze it is.

Fields: `x` and `y`, counted from the maze's middle, and `maze_0`, `maze_1`, ..., names of the layout.
"""

import functools
from collections.abc import Sequence

from llmdpd_jax.tasks.wording import Wording
from llmdpd_jax.tasks.wordings.point import point_wordings

# Of each layout: names to train on, and names kept from training.
TRAIN_NAMES = {
    "umaze": ("U-shaped", "umaze", "small", "horseshoe"),
    "medium": ("medium", "medium-sized", "middle-sized", "average"),
    "large": ("large", "large-sized", "big", "spacious"),
}
HELD_OUT_NAMES = {
    "umaze": ("tiny", "letter-U"),
    "medium": ("mid-size", "moderate"),
    "large": ("huge", "biggest"),
}
TRAIN_FRAMES = (
    "In the {maze} maze. {goal}",
    "{goal} Maze: {maze}.",
    "Layout {maze}: {goal}",
    "You are inside a labyrinth of the kind called {maze}. {goal}",
    "{goal} (maze type {maze})",
    "maze={maze}; {goal}",
    "The walls are those of the {maze} maze. {goal}",
    "{goal} The corridors around you are those of the {maze} one.",
)
HELD_OUT_FRAMES = (
    "Welcome to the arena of walls, {maze} edition! {goal}",
    "{goal} Mind the {maze} floor plan.",
)


def names(layout: str) -> dict[str, str]:
    """The fields of the templates that name a layout."""
    return {f"maze_{i}": name for i, name in enumerate(TRAIN_NAMES[layout] + HELD_OUT_NAMES[layout])}


def _within(frames: Sequence[str], fields: Sequence[int], goals: Sequence[str]) -> list[str]:
    """Every sentence about the goal within one of the frames; frames and names take turns, so that all of them meet."""
    return [
        frames[i % len(frames)].format(goal=goal, maze=f"{{maze_{fields[i // len(frames) % len(fields)]}}}")
        for i, goal in enumerate(goals)
    ]


@functools.cache
def maze_wordings() -> tuple[Wording, ...]:
    """All wordings of a goal in a maze."""
    train, held_out = (len(names["umaze"]) for names in (TRAIN_NAMES, HELD_OUT_NAMES))
    goals = point_wordings()
    return (
        *(
            Wording(f"train_{i}", template, held_out=False)
            for i, template in enumerate(_within(TRAIN_FRAMES, range(train), goals.train))
        ),
        *(
            Wording(f"held_out_{i}", template, held_out=True)
            for i, template in enumerate(_within(HELD_OUT_FRAMES, range(train, train + held_out), goals.held_out))
        ),
    )
