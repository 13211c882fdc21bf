"""What a run is given, beside what tests of whole runs show."""

import numpy as np

from llmdpd_jax.config import parse_config
from llmdpd_jax.training.preparation import prepare


def test_better_episodes_weigh_more_if_asked_for_in_memory_and_streamed(world):
    plain = prepare(parse_config(world.config()))
    assert plain.data.store.weights is None
    held = prepare(parse_config(world.config(data__return_temperature=0.3)))
    streamed = prepare(parse_config(world.config(data__return_temperature=0.3, data__streaming=True)))
    weights, returns = held.data.store.weights, held.data.returns
    np.testing.assert_array_equal(streamed.data.weights, weights)
    for task in range(len(held.data.split.tasks)):
        mine = held.data.task_id == task
        np.testing.assert_array_equal(np.argsort(weights[mine]), np.argsort(returns[mine]))
        assert weights[mine].min() < 1 < weights[mine].max()
    # The data are the same, however they are weighed: a run may not go on with other data.
    assert held.about_data["digest"] == plain.about_data["digest"]
