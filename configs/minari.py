"""Your own Minari data sets, listed in a task manifest (README, "Your own data"). No environment is needed.

llmdpd train --config=configs/minari.py --config.data.manifest=path/to/tasks.json --out=runs/mine
"""

from llmdpd_jax.config import default_config


def get_config():
    return default_config()
