"""The metrics files: content, resuming, growing columns."""

import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from llmdpd_jax.errors import UserError
from llmdpd_jax.training.metrics import MetricsWriter, read_metrics


def events(run):
    """All TensorBoard events of a run, oldest file first."""
    found = []
    for path in sorted((run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_values_come_back(tmp_path):
    with MetricsWriter(tmp_path / "run") as metrics:
        metrics.write(10, {"loss/critic": np.float32(0.1), "time": 2})
        metrics.write(20, {"loss/critic": 1e-12, "time": float("nan")})
    read = read_metrics(tmp_path / "run" / "metrics.csv")
    assert list(read) == ["step", "loss/critic", "time"]
    np.testing.assert_array_equal(read["step"], [10, 20])
    np.testing.assert_array_equal(read["time"], [2, np.nan])
    np.testing.assert_array_equal(np.float32(read["loss/critic"]), np.float32([0.1, 1e-12]))


def test_rows_are_on_disk_at_once(tmp_path):
    metrics = MetricsWriter(tmp_path)
    metrics.write(1, {"loss": 3.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,3\n"
    metrics.close()


def test_columns_may_grow_and_cells_may_be_empty(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, {"loss": 3.0})
        metrics.write(2, {"loss": 2.0, "validation": 5.0})
        metrics.write(3, {"other": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,validation,other\n1,3,,\n2,2,5,\n3,,,1\n"
    np.testing.assert_array_equal(read_metrics(tmp_path / "metrics.csv")["validation"], [np.nan, 5, np.nan])


def test_resuming_drops_rows_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        for step in (100, 200, 300):
            metrics.write(step, {"loss": step})
    with MetricsWriter(tmp_path, resume_step=200) as metrics:
        metrics.write(300, {"loss": -1.0, "extra": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,extra\n100,100,\n200,200,\n300,-1,1\n"


def test_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path):
    def train(run, steps, resume_step=None):
        with MetricsWriter(run, resume_step) as metrics:
            for step in steps:
                metrics.write(step, {"loss": np.sin(step)})

    train(tmp_path / "whole", range(1, 9))
    train(tmp_path / "broken", range(1, 6))
    train(tmp_path / "broken", range(4, 9), resume_step=3)
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "broken/metrics.csv").read_bytes()


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,3\n2,1.23")
    with MetricsWriter(tmp_path, resume_step=5) as metrics:
        metrics.write(6, {"loss": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,3\n6,1\n"


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,3\n")
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(0, {"loss": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n0,1\n"


def test_tensorboard_gets_the_same_and_forgets_what_resuming_drops(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(100, {"loss/critic": 0.5})
        metrics.write(200, {"loss/critic": 0.25})
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars == [(100, "loss/critic", 0.5), (200, "loss/critic", 0.25)]
    with MetricsWriter(tmp_path, resume_step=100) as metrics:
        metrics.write(200, {"loss/critic": 0.125})
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [0, 101], "TensorBoard hides earlier events from the step of a session's start on"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("loss\n1\n", 'first column must be "step"'),
        ("step,loss\n1,2\n2\n", "line 3: expected 2 cells"),
        ("step,loss\n1,two\n", 'line 2: "two" in column loss'),
    ],
)
def test_damaged_files_are_explained(tmp_path, text, expected):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        read_metrics(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path / "metrics.csv")
