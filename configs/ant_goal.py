"""ant_goal: an ant that walks to the point it is told (Brax).

llmdpd collect --family=ant_goal --quality=mixed --episodes=100
llmdpd train --config=configs/ant_goal.py --out=runs/ant_goal
llmdpd evaluate runs/ant_goal
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/ant_goal/tasks.json"
    config.agent.cloning_weight = 0.1  # as for cheetah_vel
    config.train.steps = 24_000
    return config
