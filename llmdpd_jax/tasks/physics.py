"""Robots of Brax as task families: the physics is Brax's, the reward and the dynamics are the task's."""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmdpd_jax.tasks.environment import PipelineEnv, State, System, TaskEnv

BACKEND = "spring"  # Brax's fastest physics; the shipped experts and their data are of it


class PhysicsTask(TaskEnv):
    """A Brax environment whose reward, and if wanted whose bodies and joints, depend on the task parameters.

    Args:
        env: the Brax environment; its start, its ends and, unless `observe` is given, its observation are kept.
        draw: `key -> parameters [P]` of a random task.
        reward: `(before, after, action [A], parameters [P], dt) -> reward` of a step, from its pipeline states.
        dynamics: `(system, parameters [P]) -> system`, for tasks whose physics differ.
        observe: `pipeline state -> observation [O]` in the place of Brax's own, where that tells what to do.
    """

    def __init__(
        self,
        env: PipelineEnv,
        draw: Callable[[jax.Array], jax.Array],
        reward: Callable[[State, State, jax.Array, jax.Array, jax.Array], jax.Array],
        dynamics: Callable[[System, jax.Array], System] | None = None,
        observe: Callable[[State], jax.Array] | None = None,
    ):
        self.brax_env = env
        self._draw, self._reward, self._dynamics, self._observe = draw, reward, dynamics, observe

    def _of(self, parameters: jax.Array) -> PipelineEnv:
        """The Brax environment with the task's bodies and joints."""
        if self._dynamics is None:
            return self.brax_env
        env = copy.copy(self.brax_env)
        env.sys = self._dynamics(self.brax_env.sys, parameters)
        return env

    def _seen(self, state: State) -> State:
        """The state with the observation that the family keeps."""
        return state if self._observe is None else state.replace(obs=self._observe(state.pipeline_state))

    def reset(self, rng: jax.Array) -> State:
        """Starts an episode of a random task."""
        task_key, key = jax.random.split(rng)
        return self.reset_task(key, self._draw(task_key))

    def reset_task(self, key: jax.Array, parameters: jax.Array) -> State:
        """Starts as the Brax environment does, at rest up to its noise."""
        parameters = jnp.asarray(parameters, jnp.float32)
        state = self._seen(self._of(parameters).reset(key))
        return state.replace(info={**state.info, "parameters": parameters}, metrics={})

    def step(self, state: State, action: jax.Array) -> State:
        """One control step; actions `[A]` are clipped to [-1, 1], as what they drive cannot do more."""
        parameters, action = state.info["parameters"], jnp.clip(action, -1.0, 1.0)
        env = self._of(parameters)
        after = env.step(state.replace(metrics={}), action)
        reward = self._reward(state.pipeline_state, after.pipeline_state, action, parameters, env.dt)
        return self._seen(after).replace(reward=reward, metrics={})

    @property
    def observation_size(self) -> int:
        return jax.eval_shape(self.reset, jax.random.key(0)).obs.shape[-1]

    @property
    def action_size(self) -> int:
        return self.brax_env.action_size

    @property
    def dt(self) -> jax.Array:
        """Seconds of a control step."""
        return self.brax_env.dt

    @property
    def backend(self) -> str:
        return self.brax_env.backend
