"""`report.html`: one page on a run that needs nothing but itself, and a picture of the test tasks to show elsewhere.

Everything is read from the run folder; what is not there yet is said to be missing:
`config.json`, `metrics.csv`, `results.json`, `rollouts.safetensors`.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation import figures
from llmdpd_jax.evaluation.aggregates import (
    Line,
    format_guidance,
    score_columns,
    setting_columns,
    table_lines,
    table_note,
)
from llmdpd_jax.evaluation.results import RESULTS_FILE, Results, Row, load_results, write_atomically
from llmdpd_jax.training.metrics import METRICS_FILE, read_metrics

REPORT_FILE = "report.html"
PICTURE_FILE = "trajectories.png"
CONFIG_FILE = "config.json"
_MAX_TASKS = 40  # pictures on the page; a larger benchmark would make it slow to open

_CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f5f7f9; --ink: #1d2329; --quiet: #59636e;
  --line: #d3d9df; --accent: #1f6fbf; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161b; --panel: #1a2027; --ink: #e4e9ee; --quiet: #9aa6b2; --line: #333d47; --accent: #6cb0f2; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: .95rem; margin: 1.5rem 0 .25rem; color: var(--quiet); font-weight: 600; }
p { margin: .4rem 0; }
.quiet, figcaption { color: var(--quiet); font-size: .875rem; }
.missing { background: var(--panel); border: 1px dashed var(--line); border-radius: 8px; padding: .9rem 1.1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.facts > div { background: var(--panel); border-radius: 8px; padding: .6rem .85rem; min-width: 0; }
.facts dt { color: var(--quiet); font-size: .78rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; font-size: .92rem; }
.headline { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1.25rem 0; padding: 0; list-style: none; }
.headline b { display: block; font-size: 2rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
.scores { width: 100%; }
th, td { padding: .38rem .5rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { font-weight: 600; font-size: .8rem; color: var(--quiet); border-bottom-width: 2px; }
tbody th { font-weight: 600; }
td.number, th.number { text-align: right; }
td.main { font-weight: 650; }
figure { margin: .75rem 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.tasks { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 1.1rem; margin-top: .75rem; }
.tasks figure { margin: 0; background: var(--panel); border-radius: 8px; padding: .5rem .6rem .65rem; }
.tasks figcaption { margin-top: .4rem; line-height: 1.4; overflow-wrap: anywhere; }
.tasks q { color: var(--ink); }
.tasks small { display: block; font-size: .75rem; }
.values { display: flex; gap: .7rem; margin-top: .2rem; font-size: .8rem; font-variant-numeric: tabular-nums; }
.values i { display: inline-block; width: .55rem; height: .55rem; border-radius: 50%; margin-right: .3rem; }
.curves { display: flex; flex-wrap: wrap; gap: 0 1rem; }
.curves section { flex: 0 1 auto; min-width: 0; }
.curves .of1 { width: calc(33.3% - .67rem); }
.curves .of2 { width: calc(66.6% - .67rem); }
.curves .of3 { width: 100%; }
@media (max-width: 640px) { .curves section.of1, .curves section.of2 { width: 100%; } }
details { background: var(--panel); border-radius: 8px; padding: .6rem .85rem; }
summary { cursor: pointer; font-weight: 600; }
details table { margin-top: .6rem; font-size: .82rem; }
details td { white-space: normal; overflow-wrap: anywhere; font-family: ui-monospace, Consolas, monospace; }
@media print { details { break-inside: avoid; } .tasks figure { break-inside: avoid; } }
"""


def write_report(run: str | Path) -> Path:
    """Write `report.html` into a run folder, and `trajectories.png` where there are rollouts to draw.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder holds nothing to report, or one of its files is damaged (the message names it).
    """
    run = Path(run)
    sources = [CONFIG_FILE, METRICS_FILE, RESULTS_FILE, figures.ROLLOUTS_FILE]
    present = {name for name in sources if (run / name).exists()}
    if not present:
        raise UserError(f"{run}: no run to report; expected a folder with at least one of {', '.join(sources)}")
    config = _read_config(run / CONFIG_FILE) if CONFIG_FILE in present else None
    metrics = read_metrics(run / METRICS_FILE) if METRICS_FILE in present else None
    results = load_results(run) if RESULTS_FILE in present else None
    rollouts = figures.load_rollouts(run / figures.ROLLOUTS_FILE) if figures.ROLLOUTS_FILE in present else None
    if rollouts is not None and figures.can_draw(rollouts):
        write_atomically(run / PICTURE_FILE, figures.png(figures.all_tasks_picture(rollouts)))
    page = render_report(run.resolve().name, config, metrics, results, rollouts)
    write_atomically(run / REPORT_FILE, page.encode("utf-8"))
    return run / REPORT_FILE


def render_report(
    title: str,
    config: Mapping[str, Any] | None,
    metrics: Mapping[str, np.ndarray] | None,
    results: Results | None,
    rollouts: figures.Rollouts | None,
) -> str:
    """The page itself, from its parts; a part that is None is named as missing. `metrics` as `read_metrics` gives."""
    if results is not None and not results.rows:
        results = None
    body = "\n".join(
        [
            _summary(title, config, metrics, results),
            _scores(results),
            _trajectories(rollouts, results),
            _curves(metrics),
            _config(config),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} – run report</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object of config fields")
    return config


def _missing(what: str, command: str) -> str:
    return f'<p class="missing">{escape(what)}; run <code>{escape(command)}</code>.</p>'


def _summary(
    title: str,
    config: Mapping[str, Any] | None,
    metrics: Mapping[str, np.ndarray] | None,
    results: Results | None,
) -> str:
    facts: dict[str, str] = {}
    if results is not None:
        facts["Task family"] = results.family
        facts["Checkpoint"] = results.checkpoint
        facts["Evaluated on"] = results.device
        facts["Evaluation took"] = _duration(results.wall_s)
        facts["Code (git)"] = results.git or "not a git checkout"
        facts["Config hash"] = results.config_hash
    if metrics is not None and len(metrics["step"]):
        facts["Last logged training step"] = f"{int(metrics['step'][-1]):,}"
    if config is not None:
        facts["Config fields"] = f"{len(_flatten(config))}, listed below"
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    heading = f'<p class="quiet">Run report</p>\n<h1>{escape(title)}</h1>'
    return f'<header>\n{heading}\n<dl class="facts">{items}</dl>\n</header>'


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


# --- Scores -----------------------------------------------------------------------------------------------------------


def _main_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of the setting that the charts show: seen wording; first variant, sampler and guidance of each prompt."""
    first: dict[str, tuple] = {}
    chosen = []
    for row in rows:
        if row.wording != "seen":
            continue
        setting = (row.variant, row.sampler, dict(row.guidance))
        if first.setdefault(row.prompt, setting) == setting:
            chosen.append(row)
    return chosen


def _scores(results: Results | None) -> str:
    if results is None:
        return "<section>\n<h2>Scores</h2>\n" + _missing("Not evaluated yet", "llmdpd evaluate") + "\n</section>"
    lines = table_lines(results.rows)
    chart_rows = [row for row in _main_rows(results.rows) if row.split == "test"]
    parts = [_headline(lines), _score_table(lines)]
    if chart_rows:
        tasks = len({row.task for row in chart_rows})
        alt = f"Chart of the score of each of {tasks} test tasks, one mark per prompt; the table above sums it up."
        first = chart_rows[0]
        setting = f"Sampler {first.sampler}, guidance {format_guidance(tuple(sorted(first.guidance.items())))}"
        seeds = "; small marks are single seeds" if len({row.seed for row in chart_rows}) > 1 else ""
        parts.append(
            f"<h3>Test tasks one by one</h3>\n<figure>{figures.svg(figures.scores_picture(chart_rows), 'scores', alt)}"
            f"<figcaption>{escape(setting)}, seen wording{seeds}.</figcaption></figure>"
        )
    return "<section>\n<h2>Scores</h2>\n" + "\n".join(parts) + "\n</section>"


def _headline(lines: Sequence[Line]) -> str:
    """The test scores in large type, of the first setting of each prompt, with seen wording."""
    first: dict[str, Line] = {}
    for line in lines:
        if line.test is not None and line.setting.wording == "seen":
            first.setdefault(line.setting.prompt, line)
    items = "".join(f"<li><b>{line.test.mean:.1f}</b>{escape(prompt)}</li>" for prompt, line in first.items())
    return f'<p class="quiet">Mean score on test tasks, by prompt</p><ul class="headline">{items}</ul>' if items else ""


def _score_table(lines: Sequence[Line]) -> str:
    labels, numbers = setting_columns(lines), score_columns(lines)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in labels)
    head += "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in numbers)
    body = []
    for index in range(len(lines)):
        cells = "".join(f'<th scope="row">{escape(values[index])}</th>' for values in labels.values())
        for name, values in numbers.items():
            mark = "number main" if name == "test score" else "number"
            cells += f'<td class="{mark}">{escape(values[index])}</td>'
        body.append(f"<tr>{cells}</tr>")
    table = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(body)}\n</tbody>"
    return (
        f'<div class="scroll" tabindex="0"><table class="scores" aria-describedby="note">\n{table}</table></div>\n'
        f'<p class="quiet" id="note">{escape(table_note(lines))}</p>'
    )


# --- Trajectories -----------------------------------------------------------------------------------------------------


def _trajectories(rollouts: figures.Rollouts | None, results: Results | None) -> str:
    heading = "<section>\n<h2>Trajectories on test tasks</h2>\n"
    if rollouts is None:
        return heading + _missing("No rollouts kept yet", "llmdpd evaluate") + "\n</section>"
    if not figures.can_draw(rollouts):
        return f'{heading}<p class="missing">Observations of this family have no plane to draw.</p>\n</section>'
    shown = min(len(rollouts.tasks), _MAX_TASKS)
    panels = "\n".join(_task_panel(rollouts, results, task) for task in range(shown))
    note = "" if rollouts.plane else "Drawn are the first two entries of the observation. "
    if rollouts.series is not None:
        note = f"Drawn is the {rollouts.series[1]} over time. "
    if shown < len(rollouts.tasks):
        note += f"The first {shown} of {len(rollouts.tasks)} tasks. "
    note += "Captions give the description that the text prompts said, and the score by prompt."
    alt = "Key: colour and dashes of the paths by prompt, start, goal."
    legend = figures.svg(figures.legend_picture(rollouts), "key", alt)
    return f'{heading}{legend}<p class="quiet">{note}</p>\n<div class="tasks">\n{panels}\n</div>\n</section>'


def _task_panel(rollouts: figures.Rollouts, results: Results | None, task: int) -> str:
    name = rollouts.tasks[task]
    scores: dict[str, list[float]] = {}
    for row in _main_rows(results.rows) if results is not None else ():
        if row.task == name and row.prompt in rollouts.prompts:
            scores.setdefault(row.prompt, []).append(row.score)
    means = {prompt: f"{round(np.mean(scores[prompt]))}" for prompt in rollouts.prompts if prompt in scores}
    said = ", ".join(f"{prompt} {value}" for prompt, value in means.items())
    alt = f"Paths in task {name}: {rollouts.descriptions[task]}" + (f" Scores: {said}." if said else "")
    picture = figures.svg(figures.task_picture(rollouts, task), f"task{task}", escape(alt))
    values = "".join(
        f'<span title="score with prompt {escape(prompt)}"><i style="background:{figures.prompt_color(prompt)}"></i>'
        f"{value}</span>"
        for prompt, value in means.items()
    )
    return (
        f"<figure>{picture}<figcaption><q>{escape(rollouts.descriptions[task])}</q>"
        f'<small>{escape(name)}</small><span class="values">{values}</span></figcaption></figure>'
    )


# --- Curves and config ------------------------------------------------------------------------------------------------


def _curves(metrics: Mapping[str, np.ndarray] | None) -> str:
    opening = "<section>\n<h2>Training</h2>\n"
    named = {name: values for name, values in (metrics or {}).items() if name != "step" and np.isfinite(values).any()}
    if not named:
        return opening + _missing("No training curves in this folder", "llmdpd train") + "\n</section>"

    def prefix(name: str) -> str:
        return name.split("/")[0] if "/" in name else ""

    parts = []
    # Groups in the order they first appear, which is the order the training code thinks in.
    for number, group in enumerate(dict.fromkeys(prefix(name) for name in named)):
        curves = {name.removeprefix(f"{group}/"): values for name, values in named.items() if prefix(name) == group}
        alt = escape(f"Training curves of {group or 'the run'} over steps: {', '.join(curves)}")
        picture = figures.svg(figures.curve_picture(metrics["step"], curves), f"curve{number}", alt)
        width = f"of{figures.curve_columns(len(curves))}"
        heading = f"<h3>{escape(group or 'run')}</h3>"
        parts.append(f'<section class="{width}">{heading}<figure>{picture}</figure></section>')
    note = '<p class="quiet">Over training steps; pale lines are the values, strong ones running means.</p>'
    return f'{opening}{note}\n<div class="curves">\n{chr(10).join(parts)}\n</div>\n</section>'


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config fields by dotted name."""
    parts = (
        _flatten(value, f"{prefix}{name}.").items()
        if isinstance(value, Mapping) and value
        else [(f"{prefix}{name}", json.dumps(value, ensure_ascii=False))]
        for name, value in config.items()
    )
    return dict(itertools.chain.from_iterable(parts))


def _config(config: Mapping[str, Any] | None) -> str:
    heading = "<section>\n<h2>Config</h2>\n"
    if config is None:
        return heading + _missing("No config in this folder", "llmdpd train") + "\n</section>"
    fields = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in _flatten(config).items()
    )
    return f"{heading}<details><summary>Every field</summary><table>{fields}</table></details>\n</section>"
