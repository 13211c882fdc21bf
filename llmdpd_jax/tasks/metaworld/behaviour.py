"""Who logs data in Meta-World: the package's scripted policies, which see the goal, with more or less noise.

Nothing here imports JAX, so that the processes that log start quickly.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llmdpd_jax.tasks.metaworld.environment import ACTION_SIZE, MetaWorldTask

REFERENCE_EPISODES = 10  # of the random policy; the expert does the same in each

Policy = Callable[[np.ndarray], np.ndarray]  # what the expert sees [39] -> action [4]


def noise(quality: str, progress: float) -> float | None:
    """The standard deviation of what is added to the scripted policy's actions, which lie in [-1, 1].

    None: actions are random. `progress` in [0, 1] is the episode's place in its data set, with which "mixed" and
    "replay" fall, like the log of a learner. With a deviation of 2 hardly a task succeeds, with 0.5 most do.
    """
    still_to_learn = (1.0 - progress) ** 2
    return {
        "random": None,
        "replay": 1.0 + still_to_learn,
        "medium": 1.0,
        "mixed": 2.0 * still_to_learn,
        "expert": 0.0,
    }[quality]


@dataclass(frozen=True)
class Request:
    """A data set to log."""

    scene: str
    vector: tuple[float, ...]
    quality: str
    horizon: int
    seeds: tuple[int, ...]  # of E episodes


class Logged(NamedTuple):
    """E episodes of T steps, and the returns of the random and the scripted policy in as many steps."""

    observations: np.ndarray  # [E, T + 1, 39] float32, without the goal
    actions: np.ndarray  # [E, T, 4] float32
    rewards: np.ndarray  # [E, T] float32
    random: float
    expert: float


def log_task(request: Request) -> Logged:
    """Logs a data set and measures the task's references; the same request gives the same arrays."""
    env = MetaWorldTask(request.scene, request.vector)
    progress = np.linspace(0.0, 1.0, len(request.seeds))
    episodes = [
        run_episode(env, make_policy(request.scene, noise(request.quality, p), seed), request.horizon)
        for p, seed in zip(progress, request.seeds, strict=True)
    ]

    def mean_return(deviation: float | None, count: int) -> float:
        policies = [make_policy(request.scene, deviation, seed) for seed in range(count)]
        return float(np.mean([run_episode(env, policy, request.horizon)[2].sum() for policy in policies]))

    random, expert = mean_return(None, REFERENCE_EPISODES), mean_return(0.0, 1)
    env.close()
    return Logged(*(np.stack(arrays) for arrays in zip(*episodes, strict=True)), random, expert)


def make_policy(scene: str, deviation: float | None, seed: int) -> Policy:
    """The scripted policy of a scene for one episode, with noise of its own; see `noise`."""
    from metaworld.policies import ENV_POLICY_MAP

    scripted, rng = ENV_POLICY_MAP[scene](), np.random.default_rng(seed)

    def act(seen: np.ndarray) -> np.ndarray:
        if deviation is None:
            action = rng.uniform(-1.0, 1.0, ACTION_SIZE)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that actions are clipped
                action = scripted.get_action(seen) + deviation * rng.standard_normal(ACTION_SIZE)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return act


def run_episode(env: MetaWorldTask, policy: Policy, horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations `[T + 1, 39]`, actions `[T, 4]` and rewards `[T]`, all float32."""
    observations, actions, rewards = [env.reset()[0]], [], []
    for _ in range(horizon):
        actions.append(policy(env.seen_by_expert))
        observation, reward, *_ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), np.stack(actions), np.array(rewards, np.float32)
