"""maze_gaps: a point finds its way through two walls that it cannot see, to a goal; every task is another maze.

llmdpd collect --family=maze_gaps --quality=mixed --episodes=100
llmdpd train --config=configs/maze_gaps.py --out=runs/maze_gaps
llmdpd evaluate runs/maze_gaps
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/maze_gaps/tasks.json"
    config.data.return_temperature = 0.1
    config.data.prompt_share = 0.25
    config.data.prompt_length = 40  # whole episodes: the way through each wall is shown but once
    config.agent.cloning_weight = 1.0
    # Outcomes hardly tell where a gap is: only who meets the wall finds out. So actors and critics teach trajectory
    # prompts what they need to know, and these teach the texts.
    config.agent.detach_context = False
    config.agent.alignment_weight = 0.3
    config.train.steps = 24_000
    return config
