"""cheetah_vel: a half cheetah that runs at the speed it is told (Brax). Twenty minutes on a CPU core.

llmdpd collect --family=cheetah_vel --quality=mixed --episodes=100
llmdpd train --config=configs/cheetah_vel.py --out=runs/cheetah_vel
llmdpd evaluate runs/cheetah_vel
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/cheetah_vel/tasks.json"
    # Six torques leave more room for errors of the critic than two displacements do. Of 0.002, 0.1 and 1 this gave the
    # best scores on train tasks (70, 79, 76 by text).
    config.agent.cloning_weight = 0.1
    config.data.return_temperature = 0.2  # the only one tried
    config.train.steps = 24_000
    return config
