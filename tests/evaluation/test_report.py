"""The report page and its pictures: what they say, that they stand alone, and that missing parts are named."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation import figures
from llmdpd_jax.evaluation.aggregates import aggregate
from llmdpd_jax.evaluation.report import render_report, write_report
from llmdpd_jax.evaluation.results import write_results
from llmdpd_jax.training.metrics import MetricsWriter

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Elements, ids and text of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attrs)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture
def run(tmp_path, synthetic):
    """A run folder with everything in it."""
    results, rollouts = synthetic(seeds=2)
    write_results(tmp_path / "results.json", results)
    figures.write_rollouts(tmp_path / "rollouts.safetensors", rollouts)
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 2000, "lr": 3e-4}, "note": "a < b & c"}))
    with MetricsWriter(tmp_path) as metrics:
        for step in range(100, 2001, 100):
            metrics.write(step, {"loss/critic": 1 / step, "loss/denoising": 2 / step, "time/updates_per_s": 500.0})
    return tmp_path


def test_page_shows_scores_curves_trajectories_and_config(run, synthetic):
    results, rollouts = synthetic(seeds=2)
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    for entry in aggregate(results.rows):
        assert f"{entry.mean:.1f} [{entry.mean_interval[0]:.1f}, {entry.mean_interval[1]:.1f}]" in page.text
    for description in rollouts.descriptions:
        assert description in page.text
    # One picture per test task, the key to them, the score chart, one per group of curves.
    assert page.tags.count("svg") == len(rollouts.tasks) + 1 + 1 + 2
    for shown in ("critic", "denoising", "updates_per_s", "train.steps", "2000", "abc1234", "12.5 s", "ddim-5"):
        assert shown in page.text
    assert "missing" not in page.values("class")


def test_page_needs_nothing_but_itself(run):
    html = write_report(run).read_text()
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    references = page.values("href") + page.values("src") + page.values("xlink:href")
    assert references and all(reference.startswith("#") for reference in references)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))
    assert "http" not in html and "@import" not in html


def test_inner_references_find_their_target(run):
    html = write_report(run).read_text()
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids)), "ids of different pictures are kept apart"
    used = {value[1:] for value in page.values("href")} | set(re.findall(r"url\(#(.*?)\)", html))
    assert used <= set(ids)


def test_pictures_are_described_for_those_who_do_not_see_them(run, synthetic):
    page = Page(write_report(run).read_text())
    labels = page.values("aria-label")
    assert len(labels) == page.tags.count("svg") and all(labels)
    _, rollouts = synthetic()
    assert any(rollouts.descriptions[0] in label and "text+trajectory" in label for label in labels)
    assert ("html", "lang", "en") in page.attributes


def test_page_follows_the_readers_light_or_dark_setting(run):
    html = write_report(run).read_text()
    assert "prefers-color-scheme: dark" in html and "stroke: var(--line)" in html
    drawn = html[html.index("<svg") :]
    assert not re.search(r"#(000000|ffffff)\b(?!; stroke-opacity: 0)", drawn), "a colour that one of the two hides"


def test_text_of_users_is_escaped(synthetic):
    results, rollouts = synthetic()
    nasty = '<script>alert("1")</script> & $x$'
    rollouts = dataclasses.replace(rollouts, descriptions=(nasty,) * 3)
    rows = [dataclasses.replace(row, task=f"{row.task}<kbd>") for row in results.rows]
    rows += [dataclasses.replace(row, variant="<samp>") for row in rows]
    results = dataclasses.replace(results, family="<u>f</u>", rows=tuple(rows))
    steps = np.arange(3.0)
    html = render_report("<h6>", {"<em>": "<s>"}, {"step": steps, "<dfn>/<var>": steps}, results, rollouts)
    page = Page(html)
    assert not {"script", "kbd", "samp", "u", "h6", "em", "s", "dfn", "var"} & set(page.tags)
    for shown in (nasty, "test-00<kbd>", "<samp>", "<u>f</u>", "<h6>", "<em>", "<s>", "<dfn>", "<var>"):
        assert shown in page.text
    figures.png(figures.all_tasks_picture(rollouts))


@pytest.mark.parametrize(
    "kept, named",
    [
        ({"config.json"}, ["Not evaluated yet", "No rollouts kept", "No training curves"]),
        ({"metrics.csv"}, ["Not evaluated yet", "No rollouts kept", "No config"]),
        ({"results.json"}, ["No rollouts kept", "No training curves", "No config"]),
        ({"rollouts.safetensors"}, ["Not evaluated yet", "No training curves", "No config"]),
    ],
)
def test_missing_parts_are_named(run, kept, named):
    for name in {"config.json", "metrics.csv", "results.json", "rollouts.safetensors"} - kept:
        (run / name).unlink()
    page = Page(write_report(run).read_text())
    assert page.values("class").count("missing") == len(named)
    for text in named:
        assert text in page.text


def test_empty_results_and_metrics_count_as_missing(synthetic):
    results, _ = synthetic()
    page = Page(render_report("x", None, {"step": np.zeros(0)}, dataclasses.replace(results, rows=()), None))
    assert "Not evaluated yet" in page.text and "No training curves" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run to report.*config\.json"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "results.json", "rollouts.safetensors", "metrics.csv"])
def test_damaged_files_are_named(run, name):
    (run / name).write_bytes(b"\x93 nonsense")
    with pytest.raises(UserError, match=re.escape(str(run / name))):
        write_report(run)


def test_train_tasks_alone_give_a_page(synthetic):
    results, _ = synthetic()
    results = dataclasses.replace(results, rows=tuple(row for row in results.rows if row.split == "train"))
    assert "train score" in Page(render_report("x", None, None, results, None)).text


# --- Rollouts and pictures --------------------------------------------------------------------------------------------


def test_rollouts_round_trip(tmp_path, synthetic):
    _, rollouts = synthetic()
    figures.write_rollouts(tmp_path / "r.safetensors", rollouts)
    read = figures.load_rollouts(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(read.observations, rollouts.observations)
    np.testing.assert_array_equal(read.goals, rollouts.goals)
    for name in ("tasks", "prompts", "descriptions", "plane"):
        assert getattr(read, name) == getattr(rollouts, name)
    bare = dataclasses.replace(rollouts, plane=None, goals=None)
    figures.write_rollouts(tmp_path / "r.safetensors", bare)
    read = figures.load_rollouts(tmp_path / "r.safetensors")
    assert read.plane is None and read.goals is None


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"tasks": ("a", "b")}, r"expected \[2 tasks, 4 prompts"),
        ({"prompts": ("none", "text", "trajectory", "both")}, "both"),
        ({"descriptions": ("one",)}, "1 descriptions for 3 tasks"),
        ({"plane": (0, 2)}, "outside observations of size 2"),
        ({"goals": np.zeros((3, 3), np.float32)}, r"expected \[3, 2\]"),
    ],
)
def test_rollouts_that_do_not_fit_together_are_refused(tmp_path, synthetic, change, expected):
    _, rollouts = synthetic()
    with pytest.raises(UserError, match=expected):
        figures.write_rollouts(tmp_path / "r.safetensors", dataclasses.replace(rollouts, **change))
    assert not list(tmp_path.iterdir())


def drawn_lines(figure) -> list[np.ndarray]:
    return [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xydata()) > 2]


def test_paths_drawn_are_those_of_the_plane(synthetic):
    _, rollouts = synthetic()
    # The plane is entries 2 and 0 of a wider observation; an episode that ends early is NaN from there on.
    wide = np.zeros((*rollouts.observations.shape[:-1], 3), np.float32)
    wide[..., 2], wide[..., 0] = rollouts.observations[..., 0], rollouts.observations[..., 1]
    wide[1, 0, 0, 6:] = np.nan
    wide = dataclasses.replace(rollouts, observations=wide, plane=(2, 0))
    paths = drawn_lines(figures.task_picture(wide, 1))
    episodes = rollouts.observations[1].reshape(-1, *rollouts.observations.shape[-2:])
    np.testing.assert_array_equal(paths[0], episodes[0, :6])
    for path, episode in zip(paths[1:], episodes[1:], strict=False):
        np.testing.assert_array_equal(path, episode)


def test_every_task_has_the_same_limits_and_holds_its_goal(synthetic):
    _, rollouts = synthetic()
    limits = [figures.task_picture(rollouts, task).axes[0].viewLim.extents for task in range(3)]
    np.testing.assert_array_equal(limits[0], limits[1])
    low, high = limits[0][:2], limits[0][2:]
    assert (low < rollouts.goals).all() and (rollouts.goals < high).all()
    assert high[0] - low[0] == pytest.approx(high[1] - low[1]), "square, so that distances look alike in x and y"


def test_walls_are_drawn_as_rectangles_and_inside_the_limits(tmp_path, synthetic):
    _, rollouts = synthetic()
    walls = np.full((3, 2, 4), np.nan, np.float32)
    walls[0], walls[1, 0] = [[3.0, -1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 2.0]], [1.0, 2.0, 1.0, 1.0]
    figures.write_rollouts(tmp_path / "r.safetensors", dataclasses.replace(rollouts, walls=walls))
    read = figures.load_rollouts(tmp_path / "r.safetensors")
    axes = [figures.task_picture(read, task).axes[0] for task in range(3)]
    drawn = [[path.get_extents().extents.tolist() for path in one.collections[0].get_paths()] for one in axes]
    assert drawn == [[[3, -1, 4, 0], [0, 0, 1, 2]], [[1, 2, 2, 3]], []]
    assert axes[2].viewLim.x1 > 4 and axes[2].viewLim.y1 > 3
    with pytest.raises(UserError, match=r"walls have shape \[2, 2, 4\]; expected \[3 tasks, walls, 4\]"):
        figures.write_rollouts(tmp_path / "s.safetensors", dataclasses.replace(rollouts, walls=walls[:2]))


def test_a_series_is_drawn_over_time_with_its_target(tmp_path, synthetic):
    _, rollouts = synthetic()
    values = rollouts.observations[..., :1].copy()
    values[1, 0, 0, 6:] = np.nan  # an episode that ended
    series = dataclasses.replace(
        rollouts, observations=values, plane=None, goals=None, series=(0, "speed (m/s)"), targets=np.float32([1, 2, 9])
    )
    figures.write_rollouts(tmp_path / "r.safetensors", series)
    read = figures.load_rollouts(tmp_path / "r.safetensors")
    assert read.series == (0, "speed (m/s)") and figures.can_draw(read)
    np.testing.assert_array_equal(read.targets, [1, 2, 9])
    figure = figures.task_picture(read, 1)
    paths = drawn_lines(figure)
    np.testing.assert_array_equal(paths[0], np.stack([np.arange(6), values[1, 0, 0, :6, 0]], axis=-1))
    np.testing.assert_array_equal(paths[1][:, 1], values[1, 0, 1, :, 0])
    target = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [2, 2]]
    assert len(target) == 1 and figure.axes[0].get_ylim()[1] > 9
    assert "speed (m/s) over time" in Page(render_report("x", None, None, None, read)).text
    assert figures.png(figures.all_tasks_picture(read)).startswith(b"\x89PNG")
    for change in ({"series": (1, "x")}, {"targets": np.zeros((3, 1), np.float32)}):
        with pytest.raises(UserError, match=r"series 1 is outside|targets have shape"):
            figures.write_rollouts(tmp_path / "s.safetensors", dataclasses.replace(read, **change))


def test_families_without_a_plane_get_no_picture(run, synthetic):
    _, rollouts = synthetic()
    flat = dataclasses.replace(rollouts, observations=rollouts.observations[..., :1], plane=None, goals=None)
    figures.write_rollouts(run / "rollouts.safetensors", flat)
    page = Page(write_report(run).read_text())
    assert "no plane to draw" in page.text and not (run / "trajectories.png").exists()
    assert (
        "first two entries"
        in Page(render_report("x", None, None, None, dataclasses.replace(rollouts, plane=None))).text
    )


def test_png_is_written_beside_the_page(run):
    write_report(run)
    assert (run / "trajectories.png").read_bytes().startswith(b"\x89PNG")


def test_scores_chart_has_a_mark_at_the_mean_of_the_seeds(synthetic):
    results, _ = synthetic(seeds=3)
    rows = [row for row in results.rows if row.split == "test" and row.prompt == "text"]
    axes = figures.scores_picture(rows).axes[0]
    big = [line.get_xydata()[0] for line in axes.lines if line.get_markersize() == 6 and line.get_marker() == "o"]
    means = [np.mean([row.score for row in rows if row.task == f"test-{index:02d}"]) for index in range(3)]
    np.testing.assert_allclose(np.array(big)[:, 0], means)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["test-00", "test-01", "test-02"]


def test_very_low_scores_do_not_squeeze_the_chart(synthetic):
    results, _ = synthetic()
    rows = [row for row in results.rows if row.split == "test" and row.prompt == "text"]
    assert "lower" not in figures.scores_picture(rows).axes[0].get_xlabel()
    axes = figures.scores_picture([dataclasses.replace(rows[0], score=-5000.0), *rows[1:]]).axes[0]
    assert axes.get_xlim()[0] > -130 and "lower than -100 is drawn there" in axes.get_xlabel()


def test_curves_skip_steps_without_a_value_and_smooth_long_series():
    steps = np.arange(200.0)
    sparse = np.where(steps % 10 == 0, steps, np.nan)
    axes = figures.curve_picture(steps, {"sparse": sparse, "line": 3 * steps}).axes
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), np.stack([steps[::10]] * 2, -1))
    raw, smooth = axes[1].lines
    np.testing.assert_array_equal(raw.get_ydata(), 3 * steps)
    np.testing.assert_allclose(smooth.get_ydata(), 3 * steps, atol=1e-9)
    noisy = figures.curve_picture(steps, {"alternating": (-1.0) ** steps}).axes[0].lines[1].get_ydata()
    assert abs(noisy[20:-20]).max() <= 1 / 11 + 1e-9, "the mean of 11 alternating ones"
