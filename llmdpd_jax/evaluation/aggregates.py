"""Means, interquartile means and bootstrap intervals of scores, and the table of them.

Everything here is computed from the rows of a `results.json`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import PROMPTS, SPLITS, WORDINGS, Group, Results, Row, group_of


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
        groups.setdefault(group_of(row), []).append(row)
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
