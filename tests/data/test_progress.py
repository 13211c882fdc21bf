"""What the progress bar says of pace."""

from rich.progress import Progress

from llmdpd_jax.data.progress import Pace


def test_pace_is_the_mean_since_the_start():
    now = 100.0
    with Progress(disable=True, get_time=lambda: now) as bar:
        task = bar.add_task("reading", total=400)
        assert Pace().render(bar.tasks[0]).plain == ""
        now = 101.0
        bar.advance(task, 90)  # a batch
        now = 110.0
        bar.advance(task, 10)
        assert Pace().render(bar.tasks[0]).plain == "10.0/s, 0:30 left"
        now = 120.0
        assert Pace().render(bar.tasks[0]).plain == "5.0/s, 1:00 left"
