"""A Gymnasium environment for tests, importable by name: a point has to come near a goal that only infos tell of."""

import gymnasium as gym
import numpy as np


class Reach(gym.Env):
    """Dict observations, as goal-conditioned environments have them; `shown` names the info that tells of success."""

    action_space = gym.spaces.Box(-1, 1, (1, 2), np.float64)
    observation_space = gym.spaces.Dict(
        observation=gym.spaces.Box(-9, 9, (1, 2)), desired_goal=gym.spaces.Box(-9, 9, (2,))
    )

    def __init__(self, goal, shown="success", ends=True):
        self.goal, self.shown, self.ends = np.array(goal), shown, ends

    def observe(self):
        return {"observation": self.place[None].astype(np.float32), "desired_goal": self.goal.astype(np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def step(self, action):
        assert action.shape == (1, 2) and action.dtype == np.float64
        self.place = self.place + action[0]
        distance = np.linalg.norm(self.place - self.goal)
        near = bool(distance < 1)
        infos = {self.shown: near} if self.shown else {}
        return self.observe(), -distance, near and self.ends, False, infos
