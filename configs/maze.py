"""maze: a point finds its way to a goal that it is told, in three mazes. Twenty minutes on a busy CPU core.

llmdpd collect --family=maze --quality=mixed --episodes=100
llmdpd train --config=configs/maze.py --out=runs/maze
llmdpd evaluate runs/maze
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/maze/tasks.json"
    config.data.return_temperature = 0.1
    config.data.prompt_share = 0.25
    config.agent.cloning_weight = 1.0
    config.train.steps = 16_000
    return config
