"""point_robot, the full setting: about eight minutes on a CPU core.

    llmdpd collect --family=point_robot --quality=mixed --episodes=100 --out=data/point_robot_mixed
    llmdpd train --config=configs/point_robot.py --out=runs/point_robot
    llmdpd evaluate runs/point_robot

`python experiments/point_robot/run.py` does this for three seeds, with the ablations; scores are in the README.
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/point_robot_mixed/tasks.json"
    config.train.steps = 12_000
    return config
