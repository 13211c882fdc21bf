"""What a benchmark measured: its rows, as a table and as a file."""

import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import write_atomically

PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers")


@dataclass(frozen=True)
class Row:
    """One figure, beside that of a reference measured in the same run."""

    name: str  # benchmark and case, as in "text/layer 10"
    value: float
    unit: str  # rates ("prompts/s") are the better the larger, "MB" the smaller
    threads: int
    device: str
    reference: str | None = None  # what it is compared with; None where nothing was
    reference_value: float | None = None  # in the same unit
    peak_fraction: float | None = None  # FLOP/s of the necessary matrix products over the machine's matrix product peak

    def __post_init__(self):
        figures = {"value": self.value, "reference_value": self.reference_value, "peak_fraction": self.peak_fraction}
        for field, figure in figures.items():
            if figure is not None and not (math.isfinite(figure) and figure > 0):
                raise ValueError(f"{self.name}: {field} must be a positive number, found {figure}")
        if not (self.name and self.unit and self.device and self.threads >= 1):
            raise ValueError(f"{self.name!r}: name, unit and device must be said, and threads be at least 1")
        if (self.reference is None) != (self.reference_value is None):
            raise ValueError(f"{self.name}: reference and reference_value go together")

    @property
    def ratio(self) -> float | None:
        """The value over that of the reference."""
        return None if self.reference_value is None else self.value / self.reference_value

    def to_json(self) -> dict:
        """As it stands in a file."""
        return dataclasses.asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class Report:
    """All that one benchmark has to say."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # what was left out, and what to do about it


def row_table(rows: Sequence[Row]) -> Table:
    """The rows for the terminal."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)  # so narrow that 80 columns hold it
    for column in ("name", "value", "unit", "reference", "its", "ratio", "of peak"):
        table.add_column(column, justify="left" if column in ("name", "unit", "reference") else "right")
    for row in rows:
        reference = "" if row.reference_value is None else f"{row.reference_value:.1f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        fraction = "" if row.peak_fraction is None else f"{100 * row.peak_fraction:.0f} %"
        table.add_row(row.name, f"{row.value:.1f}", row.unit, row.reference or "", reference, ratio, fraction)
    if rows:
        table.caption = f"{rows[0].threads} threads, {rows[0].device}"
    return table


def write_rows(path: Path, benchmark: str, rows: Sequence[Row]) -> None:
    """Writes rows, the Python and the packages they were measured with.

    Raises: ValueError if two rows have the same name and reference; UserError if the file cannot be written.
    """
    labels = [(row.name, row.reference) for row in rows]
    if len(set(labels)) < len(labels):
        raise ValueError(f"{benchmark}: two rows of one name and reference among {labels}")
    content = {"benchmark": benchmark, "versions": _versions(), "rows": [row.to_json() for row in rows]}
    try:
        write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
