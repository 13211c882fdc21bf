"""maze: a point finds its way to a goal that it is told, in three mazes. About ten minutes on a CPU core.

llmdpd collect --family=maze --quality=mixed --episodes=100
llmdpd train --config=configs/maze.py --out=runs/maze
llmdpd evaluate runs/maze
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/maze/tasks.json"
    config.train.steps = 12_000
    return config
