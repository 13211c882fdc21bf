"""Meta-World's tasks as Gymnasium environments that hide the goal.

    gymnasium.make("llmdpd_jax.tasks.metaworld.environment:LLMDPD-MetaWorld-v0", scene="push-v3", vector=[...])

makes them wherever this package is installed: importing the module registers the id. Needs the extra `metaworld`.
"""

import difflib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from llmdpd_jax.errors import UserError

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

_NAME = "LLMDPD-MetaWorld-v0"
ENV_ID = f"{__name__}:{_NAME}"
LONGEST = 500  # steps of an episode, beyond which Meta-World refuses to go on
OBSERVATION_SIZE = 39  # hand, gripper and objects now (18) and a step before (18), and the goal's position (3)
ACTION_SIZE = 4  # hand displacement along x, y and z in centimetres, and the gripper's effort
GOAL = slice(36, 39)  # the goal's place in an observation

Vector = tuple[float, ...]
Goal = tuple[float, float, float]  # x (to the right), y (forward) and z (up) in metres from the robot's base


class MetaWorldTask(gym.Env):
    """A scene with a goal that the observation does not tell: its three numbers are 0, as Meta-World hides it in ML1.

    Rewards (0 to 10 a step) and infos are Meta-World's; `info["success"]` is 1.0 at the steps at which the goal is
    reached. Nothing ends an episode early. Every episode starts alike, as Meta-World's tasks do.
    """

    def __init__(self, scene: str, vector: Sequence[float]):
        """
        Args:
            scene: a name of Meta-World's, "push-v3".
            vector: where objects and goal are, as `draw_places` gives it.

        Raises:
            UserError: the package is not installed, or has no scene of that name.
        """
        self._env = make_scene(scene)
        self._env._freeze_rand_vec = True
        self._env._last_rand_vec = np.array(vector, np.float64)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)

    @property
    def goal(self) -> Goal:
        """The goal, once the task has been reset."""
        return tuple(self._env._target_pos.tolist())

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seen_by_expert, info = self._env.reset()
        return self._hidden(), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.seen_by_expert, reward, terminated, truncated, info = self._env.step(action)
        return self._hidden(), float(reward), terminated, truncated, info

    def _hidden(self) -> np.ndarray:
        """The observation [39] float32 without the goal; `seen_by_expert` [39] float64 has it."""
        observation = self.seen_by_expert.astype(np.float32)
        observation[GOAL] = 0.0
        return observation

    def close(self) -> None:
        self._env.close()


def make_scene(scene: str) -> "SawyerXYZEnv":
    """Meta-World's environment of that name, with the goal in its observations. Raises as `MetaWorldTask`."""
    try:
        from metaworld import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise UserError(f'Meta-World is not installed ({error}); pip install -e ".[metaworld]"') from error
    if scene not in ALL_V3_ENVIRONMENTS:
        near = difflib.get_close_matches(scene, ALL_V3_ENVIRONMENTS, n=1)
        raise UserError(f"Meta-World has no task {scene!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    env = ALL_V3_ENVIRONMENTS[scene]()
    # What `set_task` would do, which takes pickled bytes. The space was cached while the goal was hidden, and what it
    # does not admit is clipped away.
    env._set_task_called = True
    env._partially_observable = False
    del env.sawyer_observation_space
    return env


def draw_places(scene: str, split: str, count: int) -> list[tuple[Vector, Goal]]:
    """Where objects and goal are in `count` tasks of a split: Meta-World's vector of 3 or 6 numbers, and the goal.

    Drawn as Meta-World draws them. The same for ever; more of them begin with fewer.
    """
    env = make_scene(scene)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.seed(int(np.random.SeedSequence([zlib.crc32(scene.encode()), split == "test"]).generate_state(1)[0]))
    places = []
    for _ in range(count):
        env.reset()
        places.append((tuple(env._last_rand_vec.tolist()), tuple(env._target_pos.tolist())))
    env.close()
    return places


gym.register(_NAME, f"{__name__}:{MetaWorldTask.__name__}", max_episode_steps=LONGEST)
