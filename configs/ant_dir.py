"""ant_dir: an ant that walks in the direction it is told (Brax).

llmdpd collect --family=ant_dir --quality=mixed --episodes=100
llmdpd train --config=configs/ant_dir.py --out=runs/ant_dir
llmdpd evaluate runs/ant_dir
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/ant_dir/tasks.json"
    config.agent.cloning_weight = 0.1  # as for cheetah_vel
    config.train.steps = 24_000
    return config
