"""point_robot in minutes on two CPU cores: smaller networks and fewer updates, else the full method.

make quickstart
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/quickstart/tasks.json"
    config.data.groups = 16
    config.data.group_size = 16
    config.model.width = 128
    config.train.steps = 8_000
    config.train.checkpoint_every = 4_000
    return config
