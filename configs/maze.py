"""maze: a point finds its way to a goal that it is told, in three mazes. Half an hour on a CPU core.

llmdpd collect --family=maze --quality=mixed --episodes=100
llmdpd train --config=configs/maze.py --out=runs/maze
llmdpd evaluate runs/maze
"""

from llmdpd_jax.config import default_config


def get_config():
    config = default_config()
    config.data.manifest = "data/maze/tasks.json"
    config.data.prompt_share = 0.25
    # Where a detour pays off only many steps later, values spread faster over chunks; each next action is planned anew.
    config.agent.chunk = 4
    config.evaluation.execute = 1
    # Ways are cloned where they lead on, and the critics choose among those drawn (IDQL). The return of an episode says
    # in a maze how near it started.
    config.agent.policy_improvement = "weighted"
    config.evaluation.best_of = 16
    config.train.steps = 24_000
    return config
