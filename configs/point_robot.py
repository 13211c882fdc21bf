"""point_robot, the full setting.

llmdpd collect --family=point_robot --quality=mixed --episodes=100 --out=data/point_robot
llmdpd train --config=configs/point_robot.py --out=runs/point_robot
llmdpd evaluate runs/point_robot
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/point_robot/tasks.json"
    return config
