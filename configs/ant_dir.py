"""ant_dir: an ant that walks in the direction it is told (Brax).

llmdpd collect --family=ant_dir --quality=mixed --episodes=100
llmdpd train --config=configs/ant_dir.py --out=runs/ant_dir
llmdpd evaluate runs/ant_dir
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/ant_dir/tasks.json"
    config.model.number_dials = 4  # headings come round again
    config.model.width = 256  # a gait in every direction asks for more than the default
    config.data.return_temperature = 0.1
    config.data.prompt_share = 0.25
    config.agent.cloning_weight = 1.0
    config.train.steps = 36_000  # half as many again as for others: chosen with the temperature
    config.evaluation.temperature = 0.0  # chosen on held-out train directions (docs/results.md)
    return config
