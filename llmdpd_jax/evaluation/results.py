"""Scores of an evaluation: the `results.json` file, and the aggregates and tables derived from it.

A file holds one row for every (split, task, prompt, wording, sampler, guidance, seed), with the raw return of every
episode. Means and intervals are always computed from the rows and never stored.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llmdpd_jax.errors import UserError

RESULTS_FILE = "results.json"
SPLITS = ("test", "train")
PROMPTS = ("none", "text", "trajectory", "text+trajectory")
WORDINGS = ("seen", "held_out")


@dataclass(frozen=True)
class Row:
    """What one checkpoint reached in one task under one setting of the prompts and the sampler."""

    split: str  # one of SPLITS
    prompt: str  # one of PROMPTS
    wording: str  # one of WORDINGS; "seen" where the prompt holds no text
    sampler: str
    guidance: Mapping[str, float]  # guidance weight of each prompt, by name
    seed: int  # of the training run
    task: str
    episodes: int
    returns: tuple[float, ...]  # undiscounted, in the environment's units, one per episode
    success: tuple[bool, ...] | None  # one per episode; None where the family defines no success
    score: float  # mean over the episodes of 100 (return - random) / (expert - random)
    variant: str = ""  # names an ablation or baseline that shares the file with the method itself

    @classmethod
    def scored(
        cls,
        *,
        returns: Sequence[float],
        random: float,
        expert: float,
        success: Sequence[bool] | None = None,
        **labels: Any,
    ) -> "Row":
        """A row whose `episodes` and `score` follow from the returns and the task's reference returns (manifest)."""
        mean_score = float(np.mean(score(returns, random, expert)))
        return cls(
            episodes=len(returns),
            returns=tuple(float(value) for value in returns),
            success=None if success is None else tuple(bool(value) for value in success),
            score=mean_score,
            **labels,
        )


@dataclass(frozen=True)
class Results:
    """The content of a `results.json`."""

    family: str
    checkpoint: str
    git: str  # commit of the code that evaluated; empty outside a git checkout
    config_hash: str
    device: str
    wall_s: float  # seconds of wall-clock time the evaluation took
    rows: tuple[Row, ...]


def score(returns: Any, random: float, expert: float) -> np.ndarray:
    """Returns on the scale where the random policy has 0 and the expert 100, elementwise.

    Raises UserError unless both references are finite and the expert's is the higher one.
    """
    if not (math.isfinite(random) and math.isfinite(expert) and expert > random):
        raise UserError(f"reference random={random}, expert={expert}: both must be finite, and expert above random")
    return 100.0 * (np.asarray(returns, dtype=np.float64) - random) / (expert - random)


# --- File -------------------------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_guidance(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(weight) for weight in value.values())


def _is_success(value: Any) -> bool:
    return value is None or _list_of(lambda item: isinstance(item, bool))(value)


_Field = tuple[Callable[[Any], bool], str]
_TEXT: _Field = (_is_text, "a string")
_NAME: _Field = (_is_name, "a string that is not empty")


def _choice(options: Sequence[str]) -> _Field:
    return (lambda value: value in options, "one of " + ", ".join(f'"{option}"' for option in options))


_RESULTS_FIELDS: dict[str, _Field] = {
    "family": _TEXT,
    "checkpoint": _TEXT,
    "git": _TEXT,
    "config_hash": _TEXT,
    "device": _TEXT,
    "wall_s": (lambda value: _is_number(value) and value >= 0, "seconds, zero or more"),
    "rows": (_list_of(lambda item: isinstance(item, dict)), "a list of objects"),
}
_ROW_FIELDS: dict[str, _Field] = {
    "split": _choice(SPLITS),
    "prompt": _choice(PROMPTS),
    "wording": _choice(WORDINGS),
    "sampler": _NAME,
    "guidance": (_is_guidance, "an object of finite numbers"),
    "seed": (_is_count, "an integer, zero or more"),
    "task": _NAME,
    "episodes": (lambda value: _is_count(value) and value > 0, "an integer above zero"),
    "returns": (_list_of(_is_number), "a list of finite numbers"),
    "success": (_is_success, "a list of true and false, or null"),
    "score": (_is_number, "a finite number"),
    "variant": _TEXT,
}
_OPTIONAL = {"variant"}


def _check_fields(data: Any, fields: Mapping[str, _Field], where: str) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{where} must be a JSON object")
    for name in fields:
        if name not in data and name not in _OPTIONAL:
            raise UserError(f'{where}: field "{name}" is missing; expected {fields[name][1]}')
    for name, value in data.items():
        if name not in fields:
            raise UserError(f'{where}: unknown field "{name}"; known are {", ".join(fields)}')
        accepts, expected = fields[name]
        if not accepts(value):
            raise UserError(f'{where}: field "{name}" is {json.dumps(value)[:80]}; expected {expected}')


def _parse_row(data: Any, where: str) -> Row:
    _check_fields(data, _ROW_FIELDS, where)
    for name in ("returns", "success"):
        if data[name] is not None and len(data[name]) != data["episodes"]:
            raise UserError(f'{where}: field "{name}" has {len(data[name])} entries for {data["episodes"]} episodes')
    success = None if data["success"] is None else tuple(data["success"])
    return Row(**{**data, "returns": tuple(data["returns"]), "success": success})


def _parse_results(data: Any, where: str) -> Results:
    _check_fields(data, _RESULTS_FIELDS, where)
    rows = tuple(_parse_row(row, f"{where}: rows[{index}]") for index, row in enumerate(data["rows"]))
    seen: dict[tuple, int] = {}
    for index, row in enumerate(rows):
        first = seen.setdefault(_identity(row), index)
        if first != index:
            raise UserError(f"{where}: rows[{first}] and rows[{index}] are the same evaluation ({_describe(row)})")
    return Results(**{**data, "rows": rows})


def _row_to_json(row: Row) -> dict[str, Any]:
    data = dataclasses.asdict(row)
    if not row.variant:
        del data["variant"]
    # Lists, as reading the file gives them, so that rows are checked alike before writing and after reading.
    data["returns"] = list(row.returns)
    data["success"] = None if row.success is None else list(row.success)
    return data


def load_results(path: str | Path) -> Results:
    """Read and check a `results.json`, given the file or the run folder that holds it.

    Raises UserError, naming the file and the field, for anything that does not follow the schema.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `llmdpd evaluate` writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    return _parse_results(data, str(path))


def write_results(path: str | Path, results: Results) -> None:
    """Write a `results.json`, one line per row, in one atomic step; a reader never sees half a file.

    Raises UserError if the results do not follow the schema; nothing is written then.
    """
    path = Path(path)
    head = {field.name: getattr(results, field.name) for field in dataclasses.fields(results) if field.name != "rows"}
    rows = [_row_to_json(row) for row in results.rows]
    _parse_results({**head, "rows": rows}, f"results for {path}")
    lines = ",\n".join("    " + json.dumps(row) for row in rows)
    text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "rows": [\n{lines}\n  ]\n}}\n'
    write_atomically(path, text.encode("utf-8"))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file by way of another one beside it, so that `path` holds the old or the new content, never a mix.

    Creates the folder if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def merge_results(parts: Sequence[Results]) -> Results:
    """Put the rows of several evaluations (seeds, checkpoints, variants) of one family together.

    Labels that differ between the parts are listed with commas, wall-clock times added. A row that occurs twice with
    equal content is kept once. Raises UserError if the families differ, or if two rows claim the same evaluation with
    different returns (evaluations of two checkpoints of one run must differ in `variant`).
    """
    if not parts:
        raise UserError("no results to merge")
    families = {part.family for part in parts}
    if len(families) > 1:
        raise UserError(f"results of different task families cannot be merged: {', '.join(sorted(families))}")
    rows: dict[tuple, Row] = {}
    for row in (row for part in parts for row in part.rows):
        if rows.setdefault(_identity(row), row) != row:
            raise UserError(f"two evaluations disagree on the same row ({_describe(row)}); give one of them a variant")

    def listed(field: str) -> str:
        return ", ".join(dict.fromkeys(getattr(part, field) for part in parts))

    return Results(
        family=parts[0].family,
        checkpoint=listed("checkpoint"),
        git=listed("git"),
        config_hash=listed("config_hash"),
        device=listed("device"),
        wall_s=sum(part.wall_s for part in parts),
        rows=tuple(rows.values()),
    )


# --- Aggregates -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """What rows of one aggregate have in common."""

    variant: str
    sampler: str
    guidance: tuple[tuple[str, float], ...]
    wording: str
    prompt: str
    split: str


@dataclass(frozen=True)
class Aggregate:
    """Scores of a group of rows, summed up. Intervals are None where there is nothing to resample."""

    group: Group
    tasks: int
    seeds: int
    mean: float
    mean_interval: tuple[float, float] | None
    iqm: float
    iqm_interval: tuple[float, float] | None
    interval_over: str  # "seeds" (within each task) or, where there is one seed only, "tasks"
    mean_return: float
    success: float | None  # share of successful episodes, 0 to 1


def _group(row: Row) -> Group:
    return Group(row.variant, row.sampler, tuple(sorted(row.guidance.items())), row.wording, row.prompt, row.split)


def _identity(row: Row) -> tuple:
    return (_group(row), row.task, row.seed)


def _describe(row: Row) -> str:
    variant = f"variant {row.variant}, " if row.variant else ""
    return f"{variant}{row.split} task {row.task}, prompt {row.prompt}, wording {row.wording}, seed {row.seed}"


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the last axis: floor(n / 4) values are dropped at either end. [..., n] -> [...]"""
    scores = np.sort(scores, axis=-1)
    cut = scores.shape[-1] // 4
    return scores[..., cut : scores.shape[-1] - cut].mean(axis=-1)


def stratified_bootstrap(
    strata: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    level: float = 0.95,
    replicates: int = 5000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of all values, resampled with replacement within each stratum.

    Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (strata are tasks, the
    values of a stratum its runs). The random stream is fixed: equal input gives equal intervals.

    Args:
        strata: one array [n_i] per stratum, none empty; sizes may differ.
        statistic: maps [replicates, n] to [replicates].
        level: probability the interval is to cover.
        replicates: number of resampled data sets.

    Returns:
        Lower and upper end of the interval.
    """
    values = np.concatenate(strata)
    sizes = np.array([len(stratum) for stratum in strata])
    size = np.repeat(sizes, sizes)  # [n], size of the stratum each value belongs to
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)  # [n], where that stratum begins
    uniform = np.random.default_rng(0).random((replicates, len(values)))
    resampled = values[start + (uniform * size).astype(int)]
    tail = (1 - level) / 2
    low, high = np.quantile(statistic(resampled), [tail, 1 - tail])
    return float(low), float(high)


def _aggregate(group: Group, rows: Sequence[Row]) -> Aggregate:
    by_task: dict[str, list[float]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.score)
    scores = np.array([row.score for row in rows])
    # With one run per task a stratum has nothing to resample; the tasks, drawn from one family, still have.
    over_seeds = min(len(runs) for runs in by_task.values()) > 1
    strata = [np.array(runs) for runs in by_task.values()] if over_seeds else [scores]
    resample = len(rows) > 1
    episodes = [flag for row in rows if row.success is not None for flag in row.success]
    return Aggregate(
        group=group,
        tasks=len(by_task),
        seeds=len({row.seed for row in rows}),
        mean=float(scores.mean()),
        mean_interval=stratified_bootstrap(strata, lambda x: x.mean(axis=-1)) if resample else None,
        iqm=float(interquartile_mean(scores)),
        iqm_interval=stratified_bootstrap(strata, interquartile_mean) if resample else None,
        interval_over="seeds" if over_seeds else "tasks",
        mean_return=float(np.mean([np.mean(row.returns) for row in rows])),
        success=float(np.mean(episodes)) if episodes else None,
    )


def aggregate(rows: Iterable[Row]) -> list[Aggregate]:
    """Mean, interquartile mean and 95 % intervals of every group of rows (see `Group`).

    Groups come in the order of variants in the rows, within a variant in that of sampler and guidance, then wording,
    prompt and split in the order of WORDINGS, PROMPTS and SPLITS. Every row has the same weight.
    """
    groups: dict[Group, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    variants = list(dict.fromkeys(group.variant for group in groups))
    settings = list(dict.fromkeys((group.sampler, group.guidance) for group in groups))

    def order(group: Group) -> tuple[int, ...]:
        return (
            variants.index(group.variant),
            settings.index((group.sampler, group.guidance)),
            WORDINGS.index(group.wording),
            PROMPTS.index(group.prompt),
            SPLITS.index(group.split),
        )

    return [_aggregate(group, groups[group]) for group in sorted(groups, key=order)]


# --- Table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of a score table: the same setting on the test tasks and on the train tasks."""

    setting: Group  # its split is of no meaning
    test: Aggregate | None
    train: Aggregate | None


def table_lines(rows: Iterable[Row]) -> list[Line]:
    """Aggregates paired up by setting, in the order of `aggregate`."""
    pairs: dict[Group, dict[str, Aggregate]] = {}
    for entry in aggregate(rows):
        setting = dataclasses.replace(entry.group, split="")
        pairs.setdefault(setting, {})[entry.group.split] = entry
    return [Line(setting, pair.get("test"), pair.get("train")) for setting, pair in pairs.items()]


def setting_columns(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Header and cells of the columns that tell a table's lines apart; what is the same everywhere is left out."""
    settings = [line.setting for line in lines]
    weights = [set(setting.guidance) for setting in settings]
    common = set.intersection(*weights)
    columns = {
        "variant": [setting.variant or "method" for setting in settings],
        "sampler": [setting.sampler for setting in settings],
        "guidance": [
            format_guidance(tuple(weight for weight in setting.guidance if weight not in common))
            for setting in settings
        ],
        "prompt": [setting.prompt for setting in settings],
        "wording": [
            setting.wording.replace("_", "-") if "text" in setting.prompt else "–"  # an empty prompt has no wording
            for setting in settings
        ],
    }
    return {name: cells for name, cells in columns.items() if name == "prompt" or len(set(cells) - {"–"}) > 1}


def format_guidance(guidance: tuple[tuple[str, float], ...]) -> str:
    """Guidance weights for reading: "text 1.5, trajectory 1"; "default" where none is named."""
    return ", ".join(f"{name} {weight:g}" for name, weight in guidance) or "default"


def format_interval(value: float, interval: tuple[float, float] | None) -> str:
    """A value and its interval for reading: "93.1 [91.0, 94.8]"."""
    return f"{value:.1f}" if interval is None else f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def score_columns(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Header and cells of the score columns, test tasks first; the train and success columns only where there are any.

    "–" marks what was not evaluated.
    """
    test, train = [line.test for line in lines], [line.train for line in lines]

    def cells(entries: Sequence[Aggregate | None], show: Callable[[Aggregate], str]) -> list[str]:
        return ["–" if entry is None else show(entry) for entry in entries]

    columns = {
        "test score": cells(test, lambda x: format_interval(x.mean, x.mean_interval)),
        "test IQM": cells(test, lambda x: format_interval(x.iqm, x.iqm_interval)),
        "test return": cells(test, lambda x: f"{x.mean_return:.2f}"),
        "test success": cells(test, lambda x: "–" if x.success is None else f"{x.success:.0%}"),
        "train score": cells(train, lambda x: format_interval(x.mean, x.mean_interval)),
    }
    return {name: values for name, values in columns.items() if name.startswith("test score") or set(values) != {"–"}}


def table_note(lines: Sequence[Line]) -> str:
    """A sentence or two on what the numbers of a score table are."""
    entries = [entry for line in lines for entry in (line.test, line.train) if entry is not None]
    splits = []
    for split in SPLITS:
        of_split = [entry for entry in entries if entry.group.split == split]
        if of_split:
            splits.append(f"{max(entry.tasks for entry in of_split)} {split} tasks")
    seeds = max(entry.seeds for entry in entries)
    over = {entry.interval_over for entry in entries}
    resampled = {
        frozenset({"seeds"}): "seeds within each task",
        frozenset({"tasks"}): "tasks (one seed: they say nothing of how training runs differ)",
    }.get(frozenset(over), "seeds within each task, or tasks where there is one seed")
    return (
        f"{', '.join(splits)}, {seeds} {'seed' if seeds == 1 else 'seeds'}. Score: 0 is the random policy, 100 the "
        f"expert. IQM: mean of the middle half. In brackets 95 % bootstrap intervals over {resampled}."
    )


def score_table(results: Results) -> Table:
    """The score table for the terminal: test tasks first, train tasks beside them.

    Raises UserError if there are no rows.
    """
    if not results.rows:
        raise UserError(f"the results of {results.checkpoint} hold no rows")
    lines = table_lines(results.rows)
    # Few columns and little space between them: the usual terminal has 80 characters.
    table = Table(
        title=Text(f"{results.family}: scores on unseen tasks"),
        title_style="bold",
        caption=Text(table_note(lines)),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    labels, numbers = setting_columns(lines), score_columns(lines)
    numbers.pop("test return", None)
    numbers["test IQM"] = [cell.split(" [")[0] for cell in numbers["test IQM"]]
    for name in labels:
        table.add_column(name, no_wrap=name in ("prompt", "wording"))
    for name in numbers:
        header = name if name.endswith("score") else name.removeprefix("test ")
        table.add_column(header, justify="right", style="bold" if name == "test score" else None)
    for index in range(len(lines)):
        table.add_row(*(Text(cells[index]) for cells in (labels | numbers).values()))
    return table
