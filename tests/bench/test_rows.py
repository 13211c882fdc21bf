"""A benchmark's rows: their figures, what is refused, table and file."""

import json

import pytest
from rich.console import Console

from llmdpd_jax.bench.rows import Row, row_table, write_rows
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import check_target

WITH = Row("text/layer 10", 30.0, "prompts/s", 2, "a CPU", "transformers", 12.0, peak_fraction=0.75)
WITHOUT = Row("text/layer 10, memory", 900.0, "MB", 2, "a CPU")


def test_figures_by_hand():
    assert WITH.ratio == 2.5
    assert WITHOUT.ratio is None
    assert WITH.to_json() == {
        "name": "text/layer 10",
        "value": 30.0,
        "unit": "prompts/s",
        "threads": 2,
        "device": "a CPU",
        "reference": "transformers",
        "reference_value": 12.0,
        "ratio": 2.5,
        "peak_fraction": 0.75,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"value": float("nan")},
        {"value": 0.0},
        {"reference_value": float("inf")},
        {"reference_value": None},
        {"reference": None},
        {"peak_fraction": -0.1},
        {"threads": 0},
        {"unit": ""},
    ],
)
def test_impossible_rows(change):
    fields = WITH.to_json() | change
    del fields["ratio"]
    with pytest.raises(ValueError, match="text/layer 10"):
        Row(**fields)


def test_file(tmp_path):
    file = tmp_path / "new" / "rows.json"
    write_rows(file, "text", [WITH, WITHOUT])
    content = json.loads(file.read_text())
    assert content["benchmark"] == "text" and {"python", "jax", "flax"} <= set(content["versions"])
    assert content["rows"] == [WITH.to_json(), WITHOUT.to_json()]
    with pytest.raises(ValueError, match="two rows of one name"):
        write_rows(file, "text", [WITH, WITH])


def test_targets(tmp_path):
    check_target(tmp_path / "new" / "rows.json")
    with pytest.raises(UserError, match="is a folder"):
        check_target(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no folder that can be written to"):
        check_target(tmp_path / "file" / "rows.json")


def test_table():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(row_table([WITH, WITHOUT]))
    lines = console.export_text().splitlines()
    assert lines[1].split() == ["text/layer", "10", "30.0", "prompts/s", "transformers", "12.0", "2.50", "75", "%"]
    assert lines[2].split() == ["text/layer", "10,", "memory", "900.0", "MB"]
    assert "2 threads, a CPU" in lines[-1]
