"""Pictures of an evaluation: drawn rollouts, scores per task, training curves. Also the file rollouts are kept in."""

import io
import itertools
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.ticker
import numpy as np
import safetensors
import safetensors.numpy
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from llmdpd_jax.diffusion.samplers import network_calls
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import PROMPTS, Row, write_atomically

ROLLOUTS_FILE = "rollouts.safetensors"
_MAX_EPISODES = 3  # drawn per prompt; more hide each other
_LOWEST_SCORE = -100.0  # marks below would squeeze the range of interest
_OPTIONAL = "goals", "targets", "walls"  # arrays that rollouts of some families have

# Drawn in the colours of a light page; `svg` hands them over to the page's own variables.
_INK, _LINE = "#1d2329", "#d3d9df"
# Told apart by brightness and dashes too, and readable on white and on near-black.
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_STYLES: dict[str, dict[str, object]] = {
    "none": {"color": "#8b939c", "linestyle": (0, (1, 1.2)), "linewidth": 1.5, "marker": "X"},
    "text": {"color": "#2f80d0", "linestyle": "-", "linewidth": 2.6, "marker": "o"},
    "trajectory": {"color": "#e08a00", "linestyle": (0, (3, 1.2)), "linewidth": 1.9, "marker": "s"},
    "text+trajectory": {"color": "#0f9d76", "linestyle": "-", "linewidth": 1.2, "marker": "D"},
}
_STYLES |= {"random": _STYLES["none"], "medium": _STYLES["trajectory"], "expert": _STYLES["text"]}  # behaviour policies


@dataclass(frozen=True)
class Rollouts:
    """Episodes to draw: N tasks, M prompts, E episodes of up to T steps."""

    observations: np.ndarray  # [N, M, E, T + 1, O] float32, environment units, NaN after the end of an episode
    tasks: tuple[str, ...]  # N names, as in the results
    prompts: tuple[str, ...]  # M of PROMPTS, as in the results; or names of behaviour policies
    descriptions: tuple[str, ...]  # N, what the text prompts said
    plane: tuple[int, int] | None = None  # observation indices that are coordinates in a plane, if the family has any
    goals: np.ndarray | None = None  # [N, 2] in that plane, if the family's tasks have a goal there
    series: tuple[int, str] | None = None  # index and label of the observation to draw over time, if the family has one
    targets: np.ndarray | None = None  # [N] that it should reach
    walls: np.ndarray | None = None  # [N, W, 4] x and y of lower left corners, width, height; NaN where there are fewer


def write_rollouts(path: str | Path, rollouts: Rollouts) -> None:
    """Write rollouts as a safetensors file, in one atomic step. Raises UserError if the shapes do not match."""
    _check_rollouts(rollouts, f"rollouts for {path}")
    arrays = {"observations": np.ascontiguousarray(rollouts.observations, dtype=np.float32)}
    for name in _OPTIONAL:
        if getattr(rollouts, name) is not None:
            arrays[name] = np.ascontiguousarray(getattr(rollouts, name), dtype=np.float32)
    fields = "tasks", "prompts", "descriptions", "plane", "series"
    names = {name: json.dumps(getattr(rollouts, name)) for name in fields}
    write_atomically(Path(path), safetensors.numpy.save(arrays, metadata=names))


def load_rollouts(path: str | Path) -> Rollouts:
    """Read what `write_rollouts` wrote. Raises UserError, naming the file, if it is something else or damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            plane, series = names["plane"], names.get("series")  # older files have no series
            given = {name: file.get_tensor(name) for name in _OPTIONAL if name in file.keys()}  # noqa: SIM118
            rollouts = Rollouts(
                observations=file.get_tensor("observations"),
                tasks=tuple(names["tasks"]),
                prompts=tuple(names["prompts"]),
                descriptions=tuple(names["descriptions"]),
                plane=None if plane is None else tuple(plane),
                series=None if series is None else tuple(series),
                **given,
            )
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a rollouts file ({error}); `llmdpd evaluate` writes it") from None
    _check_rollouts(rollouts, str(path))
    return rollouts


def _check_rollouts(rollouts: Rollouts, where: str) -> None:
    shape = rollouts.observations.shape
    tasks = len(rollouts.tasks)
    if len(shape) != 5 or shape[:2] != (tasks, len(rollouts.prompts)):
        raise UserError(
            f"{where}: observations have shape {list(shape)}; expected [{tasks} tasks, {len(rollouts.prompts)} "
            "prompts, episodes, steps + 1, observation size]"
        )
    if len(rollouts.descriptions) != tasks:
        raise UserError(f"{where}: {len(rollouts.descriptions)} descriptions for {tasks} tasks")
    unknown = set(rollouts.prompts) - set(_STYLES)
    if unknown:
        raise UserError(f"{where}: unknown prompts {sorted(unknown)}; known are {', '.join(_STYLES)}")
    if rollouts.plane is not None and not all(0 <= index < shape[-1] for index in rollouts.plane):
        raise UserError(f"{where}: plane {list(rollouts.plane)} is outside observations of size {shape[-1]}")
    if rollouts.series is not None and not 0 <= rollouts.series[0] < shape[-1]:
        raise UserError(f"{where}: series {rollouts.series[0]} is outside observations of size {shape[-1]}")
    for name, expected in {"goals": (tasks, 2), "targets": (tasks,)}.items():
        found = getattr(rollouts, name)
        if found is not None and found.shape != expected:
            raise UserError(f"{where}: {name} have shape {list(found.shape)}; expected {list(expected)}")
    walls = rollouts.walls
    if walls is not None and (walls.ndim != 3 or walls.shape[::2] != (tasks, 4)):
        raise UserError(f"{where}: walls have shape {list(walls.shape)}; expected [{tasks} tasks, walls, 4]")


# --- Rollouts ---------------------------------------------------------------------------------------------------------


def _plane_paths(rollouts: Rollouts) -> np.ndarray:
    """[N, M, E, T + 1, 2] what to draw: steps and the family's series, or its plane, or the first two observations."""
    if rollouts.series is not None:
        values = rollouts.observations[:, :, :_MAX_EPISODES, :, rollouts.series[0]]
        steps = np.broadcast_to(np.arange(values.shape[-1], dtype=np.float32), values.shape)
        return np.stack([np.where(np.isfinite(values), steps, np.nan), values], axis=-1)
    plane = rollouts.plane or (0, 1)
    return rollouts.observations[..., list(plane)][:, :, :_MAX_EPISODES]


def can_draw(rollouts: Rollouts) -> bool:
    """Whether the rollouts have two coordinates, or a series, to draw."""
    if rollouts.series is not None:
        return bool(np.isfinite(_plane_paths(rollouts)).any())
    return rollouts.observations.shape[-1] >= 2 and bool(np.isfinite(_plane_paths(rollouts)).any())


def _limits(rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray]:
    """Corners of what holds every path and goal, with a margin; the same for all tasks. Of a plane it is a square."""
    points = _plane_paths(rollouts).reshape(-1, 2)
    if rollouts.goals is not None:
        points = np.concatenate([points, rollouts.goals])
    if rollouts.targets is not None:
        points = np.concatenate([points, [[0.0, target] for target in rollouts.targets]])
    if rollouts.walls is not None:
        corners, sizes = np.split(rollouts.walls.reshape(-1, 4), 2, axis=-1)
        points = np.concatenate([points, corners, corners + sizes])
    points = points[np.isfinite(points).all(axis=-1)]
    if rollouts.series is not None:
        low, high = points.min(axis=0), points.max(axis=0)
        margin = 0.05 * np.maximum(high - low, 1e-6)
        return low - margin, high + margin
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    half = max(float((points.max(axis=0) - points.min(axis=0)).max()) / 2, 1e-6) * 1.1
    return centre - half, centre + half


def _draw_task(axes: Axes, rollouts: Rollouts, task: int) -> None:
    low, high = _limits(rollouts)
    if rollouts.series is None:
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
    else:
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[])
        axes.tick_params(axis="y", direction="in", pad=-14, length=2, labelsize=6, colors=_INK, zorder=6)
    for spine in axes.spines.values():
        spine.set_color(_LINE)
    if rollouts.walls is not None:
        walls = [Rectangle(wall[:2], *wall[2:]) for wall in rollouts.walls[task] if np.isfinite(wall).all()]
        axes.add_collection(PatchCollection(walls, color=_LINE, zorder=0))
    else:
        if low[0] < 0 < high[0]:
            axes.axvline(0, color=_LINE, linewidth=0.7, zorder=0)
        if low[1] < 0 < high[1]:
            axes.axhline(0, color=_LINE, linewidth=0.7, zorder=0)
    paths = _plane_paths(rollouts)[task]
    if rollouts.goals is not None:
        axes.plot(*rollouts.goals[task], marker="o", markersize=15, color="none", markeredgecolor=_INK, zorder=2)
        axes.plot(*rollouts.goals[task], marker="+", markersize=8, color=_INK, zorder=2)
    if rollouts.targets is not None:
        axes.axhline(rollouts.targets[task], color=_INK, linewidth=1, linestyle=(0, (5, 2)), zorder=2)
    for prompt, episodes in zip(rollouts.prompts, paths, strict=True):
        style = _STYLES[prompt]
        for path in episodes:
            path = path[np.isfinite(path).all(axis=-1)]
            if len(path):
                axes.plot(*path.T, **{**style, "marker": "None"}, alpha=0.9, zorder=3, solid_capstyle="round")
                axes.plot(*path[-1], marker=style["marker"], markersize=3.6, color=style["color"], zorder=4)
    starts = paths[:, :, 0].reshape(-1, 2)
    axes.plot(*starts.T, linestyle="none", marker="o", markersize=4, color=_INK, zorder=5)


def task_picture(rollouts: Rollouts, task: int) -> Figure:
    """The paths of one task, one colour per prompt, with its start and goal."""
    figure = Figure(figsize=(2.2, 2.2))
    _draw_task(figure.add_axes((0.01, 0.01, 0.98, 0.98)), rollouts, task)
    return figure


def legend_picture(rollouts: Rollouts) -> Figure:
    """The key to the drawn paths, alone."""
    figure = Figure(figsize=(6.4, 0.36))
    figure.legend(handles=_handles(rollouts), loc="center", ncols=6, frameon=False, labelcolor=_INK, fontsize=10)
    return figure


def prompt_color(prompt: str) -> str:
    """The colour a prompt has in all pictures, as CSS writes it."""
    return str(_STYLES[prompt]["color"])


def _handles(rollouts: Rollouts) -> list[Line2D]:
    def point(**style: object) -> Line2D:
        return Line2D([], [], linestyle="none", **style)

    handles = [Line2D([], [], label=prompt, markersize=4.5, **_STYLES[prompt]) for prompt in rollouts.prompts]
    handles.append(point(label="start", marker="o", markersize=4, color=_INK))
    if rollouts.targets is not None:
        handles.append(Line2D([], [], label="target", color=_INK, linewidth=1, linestyle=(0, (5, 2))))
    if rollouts.goals is not None:
        handles.append(point(label="goal", marker="o", markersize=11, color="none", markeredgecolor=_INK))
    return handles


def all_tasks_picture(rollouts: Rollouts, columns: int = 5, limit: int = 30) -> Figure:
    """All tasks as small multiples, with their descriptions as titles: one picture to show elsewhere."""
    tasks = min(len(rollouts.tasks), limit)
    columns = min(columns, tasks)
    rows = math.ceil(tasks / columns)
    figure = Figure(figsize=(2.35 * columns, 2.75 * rows + 0.5), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for task, axes in itertools.zip_longest(range(tasks), grid.flat):
        if task is None:
            axes.set_axis_off()
            continue
        _draw_task(axes, rollouts, task)
        title = textwrap.shorten(rollouts.descriptions[task], 72, placeholder=" …")
        # Matplotlib would take text between two dollar signs for a formula.
        axes.set_title(textwrap.fill(title, 40), fontsize=7.5, color=_INK, parse_math=False)
    handles = _handles(rollouts)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    if rollouts.series is not None:
        figure.supylabel(rollouts.series[1], fontsize=9, color=_INK)
        figure.supxlabel("time", fontsize=9, color=_INK)
    return figure


# --- Scores and curves ------------------------------------------------------------------------------------------------


def scores_picture(rows: Sequence[Row]) -> Figure:
    """One line per task, one mark per prompt at its mean score, small marks for the single seeds.

    The rows must differ in nothing but task, prompt and seed. Scores below -100 are drawn at -100; the axis says so.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault(row.task, {}).setdefault(row.prompt, []).append(row.score)
    figure = Figure(figsize=(9.6, 0.9 + 0.27 * len(scores)), layout="constrained")
    axes = figure.add_subplot()
    _bare(axes)
    axes.grid(axis="both", color=_LINE, linewidth=0.7)
    for level in (0, 100):
        axes.axvline(level, color=_INK, linewidth=1, alpha=0.55, zorder=1)
    prompts = [prompt for prompt in PROMPTS if any(prompt in of_task for of_task in scores.values())]
    for line, of_task in enumerate(scores.values()):
        for prompt, values in of_task.items():
            # A little apart vertically: good prompts have nearly equal scores.
            y = line + 0.17 * (prompts.index(prompt) - (len(prompts) - 1) / 2)
            mark = {"linestyle": "none", "marker": _STYLES[prompt]["marker"], "color": _STYLES[prompt]["color"]}
            if len(values) > 1:
                axes.plot(
                    np.maximum(values, _LOWEST_SCORE), [y] * len(values), **mark, markersize=2.5, alpha=0.6, zorder=2
                )
            axes.plot(max(np.mean(values), _LOWEST_SCORE), y, **mark, markersize=6, zorder=3)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_yticks(range(len(scores)), scores, parse_math=False)
    lower = f"; lower than {_LOWEST_SCORE:.0f} is drawn there" if any(row.score < _LOWEST_SCORE for row in rows) else ""
    axes.set_xlabel(f"score (0 random policy, 100 expert{lower})", color=_INK, fontsize=9)
    handles = [Line2D([], [], label=name, **{**_STYLES[name], "linestyle": "none"}) for name in prompts]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, labelcolor=_INK, fontsize=9)
    return figure


def sweep_picture(rows: Sequence[Row]) -> Figure:
    """Mean test score against network calls per action: a panel per prompt, a line per sampler and guidance weights."""
    prompts = [prompt for prompt in PROMPTS[1:] if any(row.prompt == prompt for row in rows)]
    found: dict[str, dict[tuple[str, str], dict[int, list[float]]]] = {prompt: {} for prompt in prompts}
    for row in rows:
        if row.split == "test" and row.wording == "seen" and row.prompt in found:
            sampler = row.sampler.partition(", ")[0]  # not how much of a chunk is carried out
            name, _, steps = sampler.rpartition("-")
            line = (name or sampler, ", ".join(f"{n} {w:g}" for n, w in row.guidance.items() if w != 1.0))
            calls = network_calls(name, int(steps)) if name else 1
            found[row.prompt].setdefault(line, {}).setdefault(calls, []).append(row.score)
    names = list(dict.fromkeys(line for lines in found.values() for line in lines))
    samplers = list(dict.fromkeys(sampler for sampler, _ in names))
    weights = list(dict.fromkeys(weight for _, weight in names))
    figure = Figure(figsize=(3.4 * len(prompts) + 1.0, 3.6), layout="constrained")
    for axes, prompt in zip(figure.subplots(1, len(prompts), sharey=True, squeeze=False)[0], prompts, strict=True):
        _bare(axes)
        axes.grid(color=_LINE, linewidth=0.7)
        for (sampler, weight), by_calls in found[prompt].items():
            calls = sorted(by_calls)
            axes.plot(
                calls,
                [np.mean(by_calls[c]) for c in calls],
                color=f"C{samplers.index(sampler)}",
                linestyle=_DASHES[weights.index(weight) % len(_DASHES)],
                marker=_MARKERS[samplers.index(sampler) % len(_MARKERS)],
                markersize=5,
            )
        axes.set_title(prompt, color=_INK, fontsize=10)
        axes.set_xlabel("network calls per action", color=_INK, fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel("score on unseen tasks", color=_INK, fontsize=9)
    handles = [
        Line2D([], [], color=f"C{i}", marker=_MARKERS[i % len(_MARKERS)], label=s) for i, s in enumerate(samplers)
    ]
    if len(weights) > 1:
        for i, weight in enumerate(weights):
            handles.append(Line2D([], [], color=_INK, linestyle=_DASHES[i % len(_DASHES)], label=weight or "plain"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False, labelcolor=_INK, fontsize=9)
    return figure


def curve_columns(curves: int) -> int:
    """How many panels a row of `curve_picture` has."""
    return min(3, curves)


def curve_picture(steps: np.ndarray, curves: Mapping[str, np.ndarray]) -> Figure:
    """Training curves as small multiples, one per metric. Values [rows] beside steps [rows]; NaN is skipped."""
    columns = curve_columns(len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for (name, values), axes in zip(curves.items(), grid.flat, strict=False):
        axes.set_axis_on()
        _bare(axes)
        axes.grid(color=_LINE, linewidth=0.6)
        known = np.isfinite(values)
        x, y = steps[known], values[known]
        smooth = _smooth(y)
        if smooth is y:
            axes.plot(x, y, color="#2f80d0", linewidth=1.4, marker="o" if len(y) == 1 else None, markersize=3)
        else:
            axes.plot(x, y, color="#2f80d0", linewidth=0.8, alpha=0.35)
            axes.plot(x, smooth, color="#2f80d0", linewidth=1.5)
        axes.set_title(name, fontsize=9, color=_INK, loc="left", parse_math=False)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    return figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the points, as many to the left as to the right; short series stay as they are.

    Windows shrink towards the ends, so the smoothed curve starts and ends at the values themselves.
    """
    half = len(values) // 40
    if half == 0:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    reach = np.minimum(half, np.minimum(centre, centre[::-1]))
    return (total[centre + reach + 1] - total[centre - reach]) / (2 * reach + 1)


def _bare(axes: Axes) -> None:
    axes.tick_params(colors=_INK, length=0, labelsize=8.5)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


# --- Output -----------------------------------------------------------------------------------------------------------


def svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as an `<svg>` element for a page: text stays text, line and text colours follow the page.

    Args:
        figure: what to draw.
        name: put before every id inside, so that several pictures fit into one page. Letters and digits.
        alt: what a reader who cannot see the picture is told; must be HTML-escaped.
    """
    for patch in [figure.patch, *(axes.patch for axes in figure.axes)]:
        patch.set_visible(False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = text.replace("xlink:href=", "href=").replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"font-family: [^;\"]*;?|font-variant: [^;\"]*;?", "", text)  # the page's own font
    text = text.replace(_INK, "var(--ink)").replace(_LINE, "var(--line)")
    text = re.sub(r">\s+<", "><", text)
    view_box = re.search(r'viewBox="[^"]*"', text)[0]
    width = figure.get_figwidth() * 96
    opening = f'<svg role="img" aria-label="{alt}" {view_box} style="max-width:{width:.0f}px">'
    return re.sub(r"<svg [^>]*>", lambda _: opening, text, count=1)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file, on white."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, facecolor="white")
    return file.getvalue()
