"""`llmdpd bench seeds`: as many seeds learn as are said, from random numbers of their own."""

import jax
import numpy as np
import pytest

from llmdpd_jax.bench import seeds
from llmdpd_jax.bench.machine import choose_cpus
from llmdpd_jax.bench.registry import BENCHMARKS


@pytest.mark.slow
def test_a_turn_makes_all_updates_of_every_seed():
    side = seeds.Training(2, updates=3, tasks=2, episodes=3, steps=30)
    side.run()
    np.testing.assert_array_equal(side.result(None), [3, 3])
    leaves = jax.tree.leaves(side.state.params)
    assert all(np.isfinite(x).all() for x in leaves)
    assert max(float(np.abs(x[0] - x[1]).max()) for x in leaves) > 0.01


@pytest.mark.slow
def test_the_row_is_of_all_seeds_together():
    report = seeds.run(choose_cpus(1), repeats=1, seeds=2, updates=2)
    (row,) = report.rows
    assert (row.name, row.unit, row.reference) == ("seeds/2 side by side", "updates/s", "one seed")
    times = float(report.notes[0].split("take ")[1].split(" times")[0])
    assert times == pytest.approx(2 / row.ratio, abs=0.01) and "seeds" in BENCHMARKS
