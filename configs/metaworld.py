"""Meta-World: a robot arm manipulates things. Needs the extra `metaworld`. With ML1 push, a task is a goal:

llmdpd collect --family=metaworld-ml1-push-v3 --quality=mixed --episodes=50 --horizon=150 --out=data/metaworld
llmdpd train --config=configs/metaworld.py --out=runs/metaworld
llmdpd evaluate runs/metaworld --episodes=4 --test-only

Other sets: metaworld-ml1-NAME of any of the 50 tasks, metaworld-ml10, metaworld-ml45, and metaworld-18, the tasks of
T2DA, here with its number of episodes and its horizon:

llmdpd collect --family=metaworld-18 --quality=mixed --episodes=200 --horizon=200 --out=data/metaworld-18
llmdpd train --config=configs/metaworld.py --config.data.manifest=data/metaworld-18/tasks.json --out=runs/metaworld-18
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/metaworld/tasks.json"
    # The better part of the data is the scripted policies' own way, which leaves little to improve: it is cloned.
    config.data.return_temperature = 0.1
    config.data.prompt_share = 0.25
    config.agent.cloning_weight = 1.0
    config.train.steps = 24_000
    return config
