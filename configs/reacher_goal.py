"""reacher_goal: an arm of two links whose fingertip goes to the point it is told (Brax).

llmdpd collect --family=reacher_goal --quality=mixed --episodes=100
llmdpd train --config=configs/reacher_goal.py --out=runs/reacher_goal
llmdpd evaluate runs/reacher_goal
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/reacher_goal/tasks.json"
    config.train.steps = 12_000
    return config
