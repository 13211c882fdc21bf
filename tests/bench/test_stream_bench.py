"""`llmdpd bench stream`: both sides train on the same data, and what is measured is what is said."""

import jax
import numpy as np
import pytest

from llmdpd_jax.bench import stream
from llmdpd_jax.bench.machine import choose_cpus
from llmdpd_jax.bench.registry import BENCHMARKS
from llmdpd_jax.data.store import load_tasks


def test_the_data_have_the_size_that_is_named(tmp_path):
    data = load_tasks(stream.noise_split(stream.write_noise(tmp_path, tasks=2, episodes=3, steps=7)), progress=False)
    assert data.store.lengths.tolist() == [7] * 6 and data.store.task_counts.tolist() == [3, 3]
    assert (data.observation_size, data.action_size) == (stream.OBSERVATION, stream.ACTION)
    assert not np.array_equal(data.store.actions[0], data.store.actions[3])
    assert "stream" in BENCHMARKS


@pytest.mark.slow
def test_rows_compare_streaming_with_the_store():
    report = stream.run(choose_cpus(1), repeats=1, tasks=2, episodes=3, steps=30)
    name = "stream/0.00018 million steps, batch 64 x 4"
    assert [(row.name, row.unit, row.reference) for row in report.rows] == [
        (f"{name}: updates", "updates/s", "device store"),
        (f"{name}: host memory", "MB", "device store"),
    ]
    assert all(row.value > 0 and row.reference_value > 0 for row in report.rows)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False])
def test_a_turn_makes_all_its_updates(tmp_path, monkeypatch, streamed):
    monkeypatch.setattr(stream, "UPDATES", 40)
    paths = stream.write_noise(tmp_path, tasks=2, episodes=3, steps=30)
    side = stream.Training(paths, str(tmp_path / "cache") if streamed else None)
    side.run()
    assert len(side.held) == 1 and (side.held[0] is None or 1e8 < side.held[0] <= stream.peak_memory())
    assert side.result(None) == 40 and all(np.isfinite(x).all() for x in jax.tree.leaves(side.state.params))
