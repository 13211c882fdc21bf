"""A trained policy, from a checkpoint alone: prompts in, context out; observations in, actions out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmdpd_jax.agents.diffusion_ql import Context
from llmdpd_jax.data.normalise import (
    denormalise_action,
    normalise_action,
    normalise_observation,
    normalise_trajectory,
)
from llmdpd_jax.diffusion.guidance import Guidance
from llmdpd_jax.diffusion.samplers import most_steps
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.llm.encoder import TextEncoder, encoder_settings
from llmdpd_jax.models.llm.weights import cache_folder
from llmdpd_jax.prompts.cache import cached_encode
from llmdpd_jax.prompts.table import normalise_text
from llmdpd_jax.prompts.trajectory import absent_trajectory, make_trajectory_prompt
from llmdpd_jax.training.checkpoint import Checkpoint, load
from llmdpd_jax.types import Array, TextPrompt, TrajectoryPrompt

MOST_CONSTANTS = 2**22  # parameters of a policy that are made part of the program that acts: 16 MB


def load_policy(path: str | Path) -> "Policy":
    """The policy of a run's newest checkpoint, or of the checkpoint or step folder named.

    Raises:
      UserError: nothing there, or a truncated or foreign checkpoint.
    """
    return Policy(load(path))


class Policy:
    """Acts for tasks it is told of in words, shown in one trajectory, or both. Holds no state but parameters.

    The acting parameters are the slow (EMA) copies. The LLM is loaded at the first text prompt that is not in the cache
    of embeddings.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.observation_size: int = checkpoint.metadata["observation_size"]
        self.action_size: int = checkpoint.metadata["action_size"]
        self.chunk: int = checkpoint.config.agent.chunk  # actions that it plans at once

    @property
    def params(self) -> dict:
        """The parameters that act, as `act_function` takes them."""
        return self.checkpoint.state.acting

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The LLM this policy was trained with.

        Raises:
          UserError: the weights found under its name are others.
        """
        encoder = TextEncoder(encoder_settings(self.config.text))
        expected = self.checkpoint.metadata["text_encoder"]
        if encoder.identity != expected:
            changed = [name for name in expected if encoder.identity.get(name) != expected[name]]
            raise UserError(
                f"{self.checkpoint.path}: text.source {self.config.text.source!r} is not the LLM this policy was "
                f"trained with ({', '.join(changed)} differ)"
            )
        tuning = self.checkpoint.state.ema.get("llm")
        return replace(encoder, tuning=tuning) if tuning else encoder

    def read_descriptions(self, texts: Sequence[str], progress: bool = False) -> TextPrompt:
        """Text prompts [B, L, ...] in the networks' units, embeddings cached on disk."""
        prompts = cached_encode(self.text_encoder, texts, cache_folder() / "embeddings", progress)
        return normalise_text(self.checkpoint.text_statistics, jax.tree.map(jnp.asarray, prompts))

    def prompt(
        self,
        text: str | Sequence[str] | None = None,
        trajectory: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> Context:
        """The context that tells the policy its task. Neither prompt given: the policy is told nothing.

        Args:
          text: one description, or a list of B.
          trajectory: one logged trajectory of the task, or a list of B: `observations` [T + 1, O], `actions` [T, A],
            `rewards` [T], in the environment's units. Of a longer one than `data.prompt_length` steps the first count.

        Returns:
          Context [C], or [B, C] if either prompt is a list.

        Raises:
          UserError: a prompt of the wrong type, shape or length, or with values that are not finite.
        """
        single = not any(isinstance(p, Sequence) and not isinstance(p, str) for p in (text, trajectory))
        if isinstance(text, bytes) or not (text is None or isinstance(text, str | Sequence)):
            raise UserError(f"text prompt: expected a string or a list of strings, found {type(text).__name__}")
        if trajectory is not None and not isinstance(trajectory, Mapping | Sequence):
            raise UserError(
                "trajectory prompt: expected a dict with observations, actions and rewards, or a list of such dicts; "
                f"found {type(trajectory).__name__}"
            )
        texts = None if text is None else [text] if isinstance(text, str) else list(text)
        trajectories = (
            None if trajectory is None else [trajectory] if isinstance(trajectory, Mapping) else list(trajectory)
        )
        counts = {len(p) for p in (texts, trajectories) if p is not None}
        batch = max(counts, default=1)
        if counts - {1, batch} or 0 in counts:
            raise UserError(
                f"prompts: {len(texts)} descriptions but {len(trajectories)} trajectories; give as many, or one"
                if counts - {0}
                else "prompts: an empty list; give at least one prompt"
            )

        trajectory_prompt = self._read_trajectories(trajectories)  # what is wrong with it shows before the LLM runs
        text_prompt = self.read_descriptions(texts) if texts else _absent_text(self.checkpoint.metadata["text_width"])
        context = self._context(
            self.params,
            text_prompt,
            trajectory_prompt,
            jnp.full(batch, texts is not None),
            jnp.full(batch, trajectories is not None),
        )
        return jax.tree.map(lambda x: x[0], context) if single else context

    def _read_trajectories(self, trajectories: list[Mapping[str, Any]] | None) -> TrajectoryPrompt:
        sizes = self.observation_size, self.action_size
        if trajectories is None:
            return absent_trajectory(*sizes)
        length = self.config.data.prompt_length
        prompts = [
            make_trajectory_prompt(one, *sizes, length, "trajectory prompt" + (f" {i}" * (len(trajectories) > 1)))
            for i, one in enumerate(trajectories)
        ]
        prompt = jax.tree.map(lambda *leaves: jnp.stack(leaves), *prompts)
        return normalise_trajectory(self.checkpoint.statistics, prompt)

    @cached_property
    def _context(self) -> Callable[..., Context]:
        return jax.jit(self.context_function)

    @property
    def context_function(self) -> Callable[..., Context]:
        """The pure function behind `prompt`, for use inside jit, vmap and scan.

        `(params, text, trajectory, has_text, has_trajectory) -> Context`, of a `TextPrompt` and a `TrajectoryPrompt` in
        the networks' units; what the flags [B] say is absent is ignored.
        """
        agent = self.checkpoint.agent

        def context(params, text, trajectory, has_text, has_trajectory):
            vectors = agent.read_text(params, text), agent.read_trajectory(params, trajectory)
            vectors = [jnp.broadcast_to(v, (*has_text.shape, v.shape[-1])) for v in vectors]
            return agent.fuse(params, *vectors, has_text, has_trajectory)

        return context

    def act(
        self,
        observation: Array,
        context: Context,
        key: Array,
        guidance: Guidance | Mapping[str, float] | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        best_of: int | None = None,
        warm_start: tuple[Array, float] | None = None,
        temperature: float | None = None,
    ) -> Array:
        """Actions [..., A] in the environment's units for observations [..., O]; of a policy that plans chunks of H
        actions (`chunk`, from `agent.chunk`), chunks [..., H, A].

        Args:
          context: from `prompt`; its batch axes broadcast with the observation's.
          key: `jax.random.key`, or its numbers (`jax.random.key_data`); the same key gives the same action.
          guidance: weights of the prompts and of the critic, as `Guidance` or {"text": ..., "trajectory": ...,
            "critic": ...}; None is plain conditioning. The weights are traced: changing them does not recompile.
          sampler: a name in `diffusion.samplers.SAMPLERS`, or "student" if the policy has one; None takes the config's
            `evaluation.sampler`.
          steps: of the sampler; None takes the config's `evaluation.steps`, or as many as a warm start leaves.
          best_of: draw as many actions and take the one the critics value most; None takes `evaluation.best_of`.
          warm_start: actions [..., A] or chunks [..., H, A] to start from, such as the previous ones, and the time in
            (0, 1) they are noised to: the earlier, the closer the new action is, and the fewer steps it needs.
          temperature: scale of the noise that actions are made from, at 0 one action for each observation; None takes
            `evaluation.temperature`. Each value has a program of its own.

        Raises:
          UserError: an observation of the wrong size, an unknown sampler or prompt, or steps that the policy was not
            trained for.
        """
        if not isinstance(observation, jax.Array):  # what NumPy holds is taken by the compiled call, at less cost
            observation = np.asarray(observation, np.float32)
        if observation.shape[-1:] != (self.observation_size,):
            raise UserError(
                f"observation: its last axis should have size {self.observation_size}, found shape {observation.shape}"
            )
        if isinstance(guidance, Mapping):
            unknown = set(guidance) - {"text", "trajectory", "critic"}
            if unknown:
                raise UserError(
                    f"guidance: unknown prompt {sorted(unknown)}; choose from 'text' and 'trajectory', or 'critic'"
                )
            for prompt, weight in guidance.items():
                if (weight is None and prompt != "critic") or (isinstance(weight, float) and not math.isfinite(weight)):
                    raise UserError(f"guidance: the weight of {prompt!r} is {weight}; it must be a finite number")
            guidance = Guidance(**guidance)
        settings, diffusion = self.config.evaluation, self.config.diffusion
        start = None if warm_start is None else float(warm_start[1])
        if steps is None:
            steps = settings.steps
            if start is not None and diffusion.time_draw == "grid":
                steps = min(steps, most_steps(diffusion.steps, start))
        return self._act(
            observation,
            context,
            key,
            guidance,
            None if warm_start is None else jnp.asarray(warm_start[0], jnp.float32),
            start=start,
            sampler=sampler or settings.sampler,
            steps=steps,
            best_of=settings.best_of if best_of is None else best_of,
            temperature=settings.temperature if temperature is None else temperature,
        )

    @cached_property
    def _act(self) -> Callable[..., Array]:
        static = ("sampler", "steps", "best_of", "start", "temperature")
        if sum(leaf.size for leaf in jax.tree.leaves(self.params)) > MOST_CONSTANTS:
            return partial(jax.jit(self.act_function, static_argnames=static), self.params)
        # As constants of the program: to hand over some hundred arrays takes longer than to act once.
        return jax.jit(partial(self.act_function, self.params), static_argnames=static)

    @property
    def act_function(self) -> Callable[..., Array]:
        """The pure function behind `act`, for use inside jit, vmap and scan.

        `(params, observation, context, key, guidance, previous, *, sampler, steps, best_of, start, temperature) ->
        action`, with `params` of this policy. `previous` and `start` are the parts of a warm start. Actions as those of
        `act`.
        """
        agent, statistics = self.checkpoint.agent, self.checkpoint.statistics

        def act(
            params,
            observation,
            context,
            key,
            guidance=None,
            previous=None,
            *,
            sampler,
            steps,
            best_of=1,
            start=None,
            temperature=1.0,
        ):
            batch = jnp.broadcast_shapes(observation.shape[:-1], context.full.shape[:-1])
            observation = observation.astype(jnp.float32)
            observation = jnp.broadcast_to(observation, (*batch, observation.shape[-1]))
            observation = normalise_observation(statistics, observation)
            warm_start = None if previous is None else (normalise_action(statistics, self._flat(previous)), start)
            how = sampler, steps, guidance, best_of, warm_start, temperature
            action = agent.act(params, observation, context, key, *how)
            action = denormalise_action(statistics, action)
            return action if self.chunk == 1 else action.reshape(*batch, self.chunk, self.action_size)

        return act

    def _flat(self, action: Array) -> Array:
        """Actions as the networks know them: chunks [..., H, A] -> [..., H * A], single ones [..., A] as they are."""
        return action if self.chunk == 1 else action.reshape(*action.shape[:-2], -1)

    def steps_per_call(self, execute: int | None = None) -> int:
        """How many actions of a chunk are carried out before the policy is asked again.

        Args:
          execute: 0 is all of them; None takes the config's `evaluation.execute`.

        Raises:
          UserError: more than there are.
        """
        execute = self.config.evaluation.execute if execute is None else execute
        if not 0 <= execute <= self.chunk:
            raise UserError(f"execute: {execute} is out of range; this policy plans {self.chunk} at once (agent.chunk)")
        return execute or self.chunk

    def values(self, observation: Array, action: Array, context: Context) -> Array:
        """Every critic's value of actions [..., A], or chunks [..., H, A], at observations [..., O], in the
        environment's units.

        Returns:
          [ensemble, ...]: discounted return to come, in units of the training rewards' standard deviation.
        """
        statistics = self.checkpoint.statistics
        observation = normalise_observation(statistics, jnp.asarray(observation, jnp.float32))
        action = normalise_action(statistics, self._flat(jnp.asarray(action, jnp.float32)))
        return self.checkpoint.agent.values(self.checkpoint.state.params, observation, action, context)

    def as_gymnasium_agent(
        self, context: Context, seed: int = 0, execute: int | None = None, **options
    ) -> "GymnasiumAgent":
        """A function from an observation of a Gymnasium environment to an action, for one task.

        Args:
          context: from `prompt`.
          seed: of the noise; the i-th time that the policy is asked, its key is `fold_in(key(seed), i)`.
          execute: as for `steps_per_call`.
          **options: as for `act`.

        Raises:
          UserError: contexts of several tasks, or impossible options.
        """
        if context.full.size > context.full.shape[-1]:
            raise UserError(f"context: of {context.full.shape[0]} tasks; a Gymnasium agent acts in one")
        return GymnasiumAgent(self, partial(self.act, context=context, **options), seed, self.steps_per_call(execute))

    def as_brax_policy(self, context: Context, **options) -> Callable[[Array, Array], tuple[Array, dict]]:
        """A pure function `(observation, key) -> (action, {})`, as Brax's acting takes it; for jit, vmap and scan.

        Of a policy that plans chunks the first action counts, for such a function cannot remember the others.

        Args:
          context: from `prompt`: [C] of one task, or [..., C] of a batch; it broadcasts with observations [..., O].
          **options: as for `act`.
        """

        def policy(observation: Array, key: Array) -> tuple[Array, dict]:
            action = self.act(observation, context, key, **options)
            return action if self.chunk == 1 else action[..., 0, :], {}

        return policy


KEYS_AT_A_TIME = 1000


class GymnasiumAgent:
    """Acts by the actions of a chunk in turn, then asks the policy for the next chunk (receding horizon).

    `reset()` drops what is left of a chunk: to be called where an episode starts, if the policy plans more than one
    action at once.
    """

    def __init__(self, policy: Policy, act: Callable[..., Array], seed: int, execute: int):
        self._act, self._seed, self._calls = act, jax.random.key(seed), 0
        self._size, self._execute = policy.action_size, execute
        self.reset()

    def reset(self) -> None:
        self._planned: list[np.ndarray] = []

    def __call__(self, observation: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
        """Observation of O numbers, or a dict with them as its entry "observation" -> action [A].

        Observations are only looked at where the policy is asked.
        """
        if not self._planned:
            observation = flat_observation(observation)
            chunk = np.asarray(self._act(observation, key=self._next_key()))
            self._planned = list(chunk.reshape(-1, self._size)[: self._execute])
        return self._planned.pop(0)

    def _next_key(self) -> np.ndarray:
        """The key of the next call, as numbers: to make typed keys one by one takes as long as to act."""
        place = self._calls % KEYS_AT_A_TIME
        if place == 0:
            calls = self._calls + np.arange(KEYS_AT_A_TIME)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self._seed, calls)
            self._keys = np.asarray(jax.random.key_data(keys))
        self._calls += 1
        return self._keys[place]


def flat_observation(observation: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
    """[O] float32; of a dict its entry "observation", as `read_episodes` reads data sets."""
    read = observation["observation"] if isinstance(observation, Mapping) else observation
    return np.asarray(read, np.float32).reshape(-1)


def _absent_text(width: int) -> TextPrompt:
    """A text prompt [1, 1, ...] that stands for none."""
    return TextPrompt(
        states=jnp.zeros((1, 1, width)),
        mask=jnp.zeros((1, 1), bool),
        numbers=jnp.zeros((1, 1)),
        number_index=jnp.full((1, 1), -1, jnp.int32),
    )
