"""ant_goal: an ant that walks to the point it is told (Brax).

llmdpd collect --family=ant_goal --quality=mixed --episodes=100
llmdpd train --config=configs/ant_goal.py --out=runs/ant_goal
llmdpd evaluate runs/ant_goal
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/ant_goal/tasks.json"
    # As for ant_dir.
    config.data.return_temperature = 0.1
    config.data.prompt_share = 0.25
    config.agent.cloning_weight = 1.0
    config.train.steps = 24_000
    return config
