"""walker_params: a walker that gets ahead, told how heavy, how stiff and how slippery its world is (Brax).

llmdpd collect --family=walker_params --quality=mixed --episodes=100
llmdpd train --config=configs/walker_params.py --out=runs/walker_params
llmdpd evaluate runs/walker_params
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/walker_params/tasks.json"
    # As for cheetah_vel.
    config.agent.cloning_weight = 0.1
    config.data.return_temperature = 0.2
    config.train.steps = 36_000
    return config
