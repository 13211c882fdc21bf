"""Rollouts in Gymnasium environments: all episodes of a setting side by side, one call of the policy for each step.

The environments are shared out among processes. Each process steps a group of them, and Gymnasium's vector environment
steps the groups.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import jax
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from llmdpd_jax.agents.diffusion_ql import Context
from llmdpd_jax.data.environments import make_environment
from llmdpd_jax.data.progress import progress_bar
from llmdpd_jax.errors import UserError
from llmdpd_jax.parallel import cpus
from llmdpd_jax.policy import Policy, flat_observation
from llmdpd_jax.tasks.manifest import Manifest

_EPISODES_PER_WORKER = 16  # with fewer, the seconds that a process takes to start are not repaid
_SUCCESS = ("success", "is_success")  # what environments call it in their infos
UNKNOWN = -1  # success where the environment does not tell


class EpisodeGroup(gym.Env):
    """K episodes, each in an environment of its own, stepped as one environment.

    An observation is what the last step did to each of them: `observations` [K, O], `rewards` [K], `running` [K] and
    `success` [K], 1 once an info has said so. An episode that has ended stands still, without rewards. Each reset
    starts the same episodes again.
    """

    def __init__(self, specs: Sequence[EnvSpec], seeds: Sequence[int], observation_size: int, action_size: int):
        self._specs, self._seeds = specs, seeds
        self._envs: list[gym.Env] = []  # made by the first reset, since gymnasium makes a group only to see its spaces
        unbounded = partial(gym.spaces.Box, -np.inf, np.inf)
        self.observation_space = gym.spaces.Dict(
            observations=unbounded((len(specs), observation_size), np.float32),
            rewards=unbounded((len(specs),), np.float64),
            running=gym.spaces.MultiBinary(len(specs)),
            success=gym.spaces.Box(UNKNOWN, 1, (len(specs),), np.int8),
        )
        self.action_space = unbounded((len(specs), action_size), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict]:
        if not self._envs:
            self._envs = [gym.make(spec) for spec in self._specs]
        starts = [env.reset(seed=seed)[0] for env, seed in zip(self._envs, self._seeds, strict=True)]
        self._state = {
            "observations": np.stack([flat_observation(start) for start in starts]),
            "rewards": np.zeros(len(starts)),
            "running": np.ones(len(starts), np.int8),
            "success": np.full(len(starts), UNKNOWN, np.int8),
        }
        return self._state, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        state = self._state
        state["rewards"][:] = 0.0
        for i in np.flatnonzero(state["running"]):
            space = self._envs[i].action_space
            following = self._envs[i].step(action[i].reshape(space.shape).astype(space.dtype))
            observation, state["rewards"][i], terminated, truncated, info = following
            state["observations"][i] = flat_observation(observation)
            state["running"][i] = not (terminated or truncated)
            for name in _SUCCESS:
                if name in info:
                    state["success"][i] = max(state["success"][i], bool(info[name]))
        return state, 0.0, False, False, {}

    def close(self) -> None:
        for env in self._envs:
            env.close()


def recover_environments(manifest: Manifest, observation_size: int, action_size: int) -> dict[str, EnvSpec]:
    """What to make the environment of each task from, by the tasks' names; `max_episode_steps` is always set.

    Raises:
        UserError: as `make_environment`; its spaces do not fit the policy, or nothing ever ends an episode.
    """
    specs = {}
    for task in manifest.tasks:
        where = f"{manifest.where}: task {task.name!r}"
        with closing(make_environment(task, manifest.where)) as env:
            _check_space(env.observation_space, observation_size, f"{where}: observation")
            _check_space(env.action_space, action_size, f"{where}: action")
            limit = manifest.horizon or env.spec.max_episode_steps
            if limit is None:
                raise UserError(
                    f'{where}: environment {env.spec.id!r} has no time limit; give the manifest a "horizon", the steps '
                    "of an episode"
                )
            specs[task.name] = replace(env.spec, max_episode_steps=limit)
    return specs


def _check_space(space: gym.Space, size: int, what: str) -> None:
    if isinstance(space, gym.spaces.Dict) and what.endswith("observation"):
        space = space.spaces.get("observation", space)
    if not isinstance(space, gym.spaces.Box) or int(np.prod(space.shape)) != size:
        raise UserError(f"{what} space of its environment is {space!s:.120}; the policy was trained on {size} numbers")


def roll_out_in_gymnasium(
    policy: Policy,
    contexts: Context,
    specs: Sequence[EnvSpec],
    seed: int = 0,
    execute: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Rolls out M settings, one after the other, in the environments of N tasks, E episodes each.

    Args:
        contexts: [M, N, E, ...], what the policy is told.
        specs: of N environments, with their time limits.
        seed: of starts and noise. Starts are the same in every setting and for any number of workers.
        execute: as for `Policy.steps_per_call`.
        workers: processes; None takes as many as there are CPUs for, if the episodes are enough. One is this process.
        **options: as for `Policy.act`.

    Returns:
        Undiscounted returns and successes [M, N, E]: 1 if an info of the episode told of success, 0 if none did, and
        UNKNOWN where the environment never tells.
    """
    settings, _, episodes = shape = contexts.full.shape[:3]
    count, execute = len(specs) * episodes, policy.steps_per_call(execute)
    if workers is None:
        workers = max(1, min(cpus(), count // _EPISODES_PER_WORKER))
    if workers < 1:
        raise UserError(f"evaluation: {workers} workers; at least 1 is needed")
    # Groups are of one size: free places in the last ones are taken by episodes that are rolled out twice.
    places = np.arange(-(-count // workers) * workers) % count
    seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
    groups = [
        partial(
            EpisodeGroup,
            [specs[i // episodes] for i in group],
            [seeds[i] for i in group],
            policy.observation_size,
            policy.action_size,
        )
        for group in np.split(places, workers)
    ]
    returns, success = np.zeros((settings, count)), np.zeros((settings, count), np.int8)
    key = jax.random.fold_in(jax.random.key(seed), 2)  # prompts are drawn by 0 and 1 (`jax.random.split`)
    calls = 0
    # A fork of a process in which JAX runs threads may hang.
    env = SyncVectorEnv(groups) if workers == 1 else AsyncVectorEnv(groups, context="spawn")
    with closing(env), progress_bar(progress) as bar:
        for m in bar.track(range(settings), description="rolling out prompts"):
            context = jax.tree.map(lambda x, m=m: x[m].reshape(count, -1)[places], contexts)
            state, _ = env.reset()
            step = 0
            while state["running"].any():
                if step % execute == 0:
                    observations = state["observations"].reshape(len(places), -1)
                    chunk = policy.act(observations, context, jax.random.fold_in(key, calls), **options)
                    planned = np.asarray(chunk).reshape(workers, -1, policy.chunk, policy.action_size)
                    calls += 1
                state, *_ = env.step(planned[:, :, step % execute])
                returns[m] += state["rewards"].reshape(-1)[:count]
                step += 1
            success[m] = state["success"].reshape(-1)[:count]
    return returns.reshape(shape), success.reshape(shape)
