"""Metrics of a training run on disk: `metrics.csv` for people and reports, event files for TensorBoard."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from llmdpd_jax.errors import UserError

METRICS_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"
_FLUSH_S = 30.0  # seconds after which TensorBoard sees what was written


class MetricsWriter:
    """Writes scalars of a run to `metrics.csv` and to `tensorboard/`, both inside the run folder.

    The CSV has a column `step` and one column per metric, in the order they first appear; a cell is empty where a
    metric was not given at that step. Every row is on disk when `write` returns.

        with MetricsWriter("runs/x", resume_step=state.step) as metrics:
            metrics.write(step, {"loss/critic": 0.3, "time/updates_per_s": 512.0})

    Args:
        run: the run folder, created if need be.
        resume_step: step of the checkpoint that training continues from. Rows after it are dropped: they were written
            by a run that went on past its last checkpoint, and will be written again. None starts afresh.
    """

    def __init__(self, run: str | Path, resume_step: int | None = None):
        run = Path(run)
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / METRICS_FILE
        last_kept = -1 if resume_step is None else resume_step
        self._columns, rows = ["step"], []
        if resume_step is not None and self._path.exists():
            self._columns, rows = _read_rows(self._path)
        self._rewrite([row for row in rows if int(row["step"]) <= last_kept])
        # TensorBoard hides what earlier event files of the folder hold from `purge_step` on.
        # The suffix keeps files apart that start within one second: their names hold the time in seconds.
        first = last_kept + 1
        # Not by tensorboardX's SummaryWriter: its thread dies of a full disk, and the run would wait for it for ever.
        folder = run / TENSORBOARD_FOLDER
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), f".{first}")
        self._events.write_event(
            Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START))
        )
        self._flushed = 0.0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row. Values are taken by `float`, so an array still being computed would be waited for."""
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        new = [name for name in row if name not in self._columns]
        if new:
            self._file.close()
            _, rows = _read_rows(self._path)
            self._columns += new
            self._rewrite(rows)
        self._csv.writerow({name: value if name == "step" else f"{value:.9g}" for name, value in row.items()})
        self._file.flush()
        for name, value in row.items():
            if name != "step":
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Replace the file by the given rows under the present columns, and leave it open for appending."""
        temporary = self._path.with_suffix(".csv.part")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self._path)
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._csv = csv.DictWriter(self._file, self._columns, lineterminator="\n")


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a metrics file. A last line without its end is left out: the writer was stopped in it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    reader = csv.reader(lines)
    columns = next(reader, [])
    if columns[:1] != ["step"]:
        raise UserError(f'{path}: the first column must be "step", found {columns[:1]}')
    rows = []
    for number, cells in enumerate(reader, start=2):
        if len(cells) != len(columns) or not cells[0].isdecimal():
            raise UserError(f'{path}, line {number}: expected {len(columns)} cells, the first a whole number ("step")')
        rows.append(dict(zip(columns, cells, strict=True)))
    return columns, rows


def read_metrics(path: str | Path) -> dict[str, np.ndarray]:
    """Read a `metrics.csv`.

    Returns:
        "step" and every metric by name, float64 arrays [rows]; NaN where a metric was not written.

    Raises:
        UserError: the file is not there, or a cell is not a number (the message names the line).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; `llmdpd train` writes it")
    columns, rows = _read_rows(path)
    table = np.full((len(rows), len(columns)), np.nan)
    for index, row in enumerate(rows):
        for column, (name, cell) in enumerate(row.items()):
            try:
                table[index, column] = float(cell) if cell else np.nan
            except ValueError:
                raise UserError(f'{path}, line {index + 2}: "{cell}" in column {name} is not a number') from None
    return {name: table[:, column] for column, name in enumerate(columns)}
