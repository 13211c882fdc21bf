"""The progress bar of long jobs on data."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


class Pace(ProgressColumn):
    """Steps per second since the start, and the time left at that rate.

    Over the whole time, since steps that are done in batches come in bursts.
    """

    def render(self, task: Task) -> Text:
        if not task.completed or not task.elapsed:
            return Text("")
        rate = task.completed / task.elapsed
        minutes, seconds = divmod(round(task.remaining / rate), 60)
        return Text(f"{rate:.1f}/s, {minutes}:{seconds:02d} left", style="progress.remaining")


def progress_bar(show: bool = True) -> Progress:
    """A bar with count, rate and time left, on standard error, so that standard output stays a program's result."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Pace(),
        console=Console(stderr=True),
        transient=True,
        disable=not show,
    )
