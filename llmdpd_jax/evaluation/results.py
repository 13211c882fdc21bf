"""Scores of an evaluation: the rows of a `results.json` file, reading, writing and merging them.

A file holds one row for every (split, task, prompt, wording, sampler, guidance, seed), with the raw return of every
episode. Means and intervals are computed from the rows (`aggregates.py`) and never stored.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class Group:
    """What rows of one aggregate have in common."""

    variant: str
    sampler: str
    guidance: tuple[tuple[str, float], ...]
    wording: str
    prompt: str
    split: str


def group_of(row: Row) -> Group:
    """The group a row is counted in."""
    return Group(row.variant, row.sampler, tuple(sorted(row.guidance.items())), row.wording, row.prompt, row.split)


def _identity(row: Row) -> tuple:
    return (group_of(row), row.task, row.seed)


def _describe(row: Row) -> str:
    variant = f"variant {row.variant}, " if row.variant else ""
    return f"{variant}{row.split} task {row.task}, prompt {row.prompt}, wording {row.wording}, seed {row.seed}"


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


def check_target(path: Path) -> None:
    """Raises UserError where a file cannot be made: known before the work, not after it."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{path}: {existing} is no folder that can be written to")


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
