"""cheetah_vel: a half cheetah that runs at the speed it is told (Brax).

llmdpd collect --family=cheetah_vel --quality=mixed --episodes=100
llmdpd train --config=configs/cheetah_vel.py --out=runs/cheetah_vel
llmdpd evaluate runs/cheetah_vel
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/cheetah_vel/tasks.json"
    return config
