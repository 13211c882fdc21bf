"""cheetah_dir: a half cheetah that runs the way it is told, forward or backward (Brax).

llmdpd collect --family=cheetah_dir --quality=mixed --episodes=100
llmdpd train --config=configs/cheetah_dir.py --out=runs/cheetah_dir
llmdpd evaluate runs/cheetah_dir
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/cheetah_dir/tasks.json"
    # As for cheetah_vel.
    config.agent.cloning_weight = 0.1
    config.data.return_temperature = 0.2
    config.model.use_numbers = False  # no number in a description tells the way
    config.train.steps = 12_000
    return config
