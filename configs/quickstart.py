"""point_robot in minutes on two CPU cores: fewer updates, else the full method.

    make quickstart

Expected scores on unseen tasks: text 85 or more, trajectory 85 or more, both 88 or more.
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/quickstart/tasks.json"
    config.train.steps = 10_000
    config.train.checkpoint_every = 5_000
    return config
