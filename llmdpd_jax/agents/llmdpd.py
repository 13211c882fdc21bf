"""LLM-Driven Policy Diffusion (Zhang & Guo 2025, arXiv 2509.00347): prompt-conditioned Diffusion-QL.

Prompts are read here and fused to a context; `diffusion_ql.py` acts and improves on it. Read downwards: networks ->
prompts -> losses -> update. All arrays are in the networks' units (`normalise_*` in `llmdpd_jax.data.normalise`); G
groups of S transitions share one task and its prompts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from llmdpd_jax import draws
from llmdpd_jax.agents.diffusion_ql import (
    STUDENT,
    STUDENT_METRICS,
    Context,
    TrainState,
    first_state,
    gradient_norm,
    make_diffusion_ql,
    make_optimiser,
    next_state,
    weigh,
)
from llmdpd_jax.models.critic import ConditionedMLP
from llmdpd_jax.models.denoiser import fused_context
from llmdpd_jax.models.llm.tuning import FrozenLLM, tuned_prompt
from llmdpd_jax.models.prompt_encoder import PromptEncoder
from llmdpd_jax.parallel import gather_across, mean_across, share_across
from llmdpd_jax.types import Array, Batch, TextPrompt, TrajectoryPrompt

SMALLEST_SPREAD = 1e-4  # variance of actions in [-1, 1] below which the behaviour counts as deterministic
ALIGNMENT_TEMPERATURE = 0.1  # of cosine similarities


class Agent(NamedTuple):
    """The method as pure functions."""

    init: Callable[..., TrainState]
    update: Callable[..., tuple[TrainState, dict[str, Array]]]
    read_text: Callable[[dict, TextPrompt], Array]
    read_trajectory: Callable[[dict, TrajectoryPrompt], Array]
    fuse: Callable[[dict, Array, Array, Array, Array], Context]
    act: Callable[..., Array]
    values: Callable[..., Array]


def alignment_loss(text: Array, trajectory: Array, task_id: Array, axis: str | None = None) -> Array:
    """Contrastive alignment: a text should resemble the trajectories of its task more than those of others. [].

    InfoNCE in both directions (CLIP, Radford et al. 2021, arXiv 2103.00020), with every pair of one task a positive
    (supervised form, Khosla et al. 2020, arXiv 2004.11362, eq. 2), since a batch may hold a task several times.

    Args:
      text, trajectory: [G, C] contexts of the text and of the trajectory prompt of G groups.
      task_id: int [G].
      axis: over whose devices more groups are divided, if any are; the mean over them is the loss of all.
    """
    text, trajectory = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (text, trajectory))
    same = task_id[:, None] == gather_across(axis, task_id)  # [G, all groups]
    positives = same / same.sum(axis=-1, keepdims=True)

    def guess(mine: Array, others: Array) -> Array:
        scores = mine @ gather_across(axis, others).T / ALIGNMENT_TEMPERATURE
        return -jnp.mean(jnp.sum(positives * jax.nn.log_softmax(scores), axis=-1))

    return 0.5 * (guess(text, trajectory) + guess(trajectory, text))


def consistency_loss(contexts: Array, task_id: Array, axis: str | None = None) -> Array:
    """Mean squared difference of the contexts [G, C] of groups of one task (int [G]); 0 if no two are of one task. [].

    With an axis over whose devices more groups are divided, the mean over them is the loss of all.

    All descriptions of a task should read the same. Outcomes alone teach that only as far as they depend on it, and a
    policy that sees sentences differ acts on the difference where it has not learned better: on unseen tasks.
    """
    tasks, others = gather_across(axis, task_id), gather_across(axis, contexts)
    itself = share_across(axis, len(tasks))[:, None] == jnp.arange(len(tasks))
    same = (task_id[:, None] == tasks) & ~itself  # [G, all groups]
    apart = jnp.mean((contexts[:, None] - others) ** 2, axis=-1)
    pairs = mean_across(axis, jnp.sum(same).astype(jnp.float32))
    return jnp.sum(jnp.where(same, apart, 0.0)) / jnp.where(pairs > 0, pairs, 1.0)


def mixing_weights(key: Array, groups: tuple[int, ...], share: float) -> Array:
    """How far the tasks of groups lie towards those that they are mixed with: 0 but for this share of them. [G].

    Args:
      key: one, or one for each group, [G].
    """
    key_which, key_far = draws.split(key, 2)
    return jnp.where(draws.bernoulli(key_which, share, groups), draws.uniform(key_far, groups), 0.0)


def mix_with_next(axis: str | None, vectors: Array, weights: Array) -> Array:
    """Vectors [G, C], moved towards the next group's (the last one's: the first's) by the weights [G]. [G, C].

    What lies between what two tasks are read as stands for an imaginary task (Latent Dynamics Mixture, Lee & Chung
    2021, arXiv 2105.13524).
    """
    others = gather_across(axis, vectors)
    following = others[(share_across(axis, len(others)) + 1) % len(others)]
    return vectors + weights[:, None] * (following - vectors)


def make_agent(
    config: ml_collections.ConfigDict, observation_size: int, action_size: int, axis: str | None = None
) -> Agent:
    """Builds the method from the `model`, `diffusion`, `agent` and `optimiser` sections of a config.

    With the name of an axis, `update` is one device's share of an update: it is given that device's groups of a batch,
    and what every device comes to is the same, that of the whole batch (`llmdpd_jax.parallel`).

    Raises:
      UserError: a choice that does not exist.
    """
    model, agent = config.model, config.agent

    # --- networks ----------------------------------------------------------------------------------------------------
    core = make_diffusion_ql(config, observation_size, action_size, axis)
    prompt_encoder = PromptEncoder(
        width=model.context_width,
        text_layers=model.text_layers,
        text_pooling=model.text_pooling,
        trajectory_layers=model.trajectory_layers,
        use_llm=model.use_llm,
        use_numbers=model.use_numbers,
        number_slots=model.number_slots,
        number_dials=model.number_dials,
        use_rewards=model.use_rewards,
        keep_prompts=model.denoiser == "dit",
    )
    # Predicts reward and change of observation from (s, a, context): it teaches the prompt encoder what a task is.
    task_model = ConditionedMLP(1 + observation_size, model.model_width, 2)
    # Predicts the logged action from (s, context): what it leaves unexplained is how widely the behaviour policy acted.
    behaviour = ConditionedMLP(agent.chunk * action_size, model.model_width, 2)
    optimiser = make_optimiser(config)

    def init(key: Array, batch: Batch, text: TextPrompt, tuning: dict | None = None) -> TrainState:
        """Initial state for inputs of the given shapes; `tuning`: of an LLM that is tuned, what is trained of it."""
        keys = jax.random.split(key, 4)
        groups = batch.task_id.shape
        flags = jnp.ones(groups, bool)
        context, encoder = prompt_encoder.init_with_output(keys[0], text, batch.prompt, flags, flags)
        context = context[:, None]
        fused = fused_context(model, context)
        params = {
            "prompt_encoder": encoder["params"],
            **core.init(keys[1], batch, context),
            "model": task_model.init(keys[2], batch.observations, batch.actions, fused)["params"],
            "behaviour": behaviour.init(keys[3], batch.observations, None, fused)["params"],
        }
        if tuning:
            params["llm"] = tuning
        return first_state(params, optimiser)

    # --- prompts -----------------------------------------------------------------------------------------------------
    def read_text(params: dict, text: TextPrompt, key: Array | None = None) -> Array:
        """Vectors [..., C] of text prompts [..., L]; with a key as in training (`TextReader`)."""
        return prompt_encoder.apply({"params": params["prompt_encoder"]}, text, key, method="read_text")

    def read_trajectory(params: dict, trajectory: TrajectoryPrompt) -> Array:
        """Vectors [..., C] of trajectory prompts [..., T]."""
        return prompt_encoder.apply({"params": params["prompt_encoder"]}, trajectory, method="read_trajectory")

    def fuse_vectors(params: dict, text: Array, trajectory: Array, has_text: Array, has_trajectory: Array) -> Array:
        """One context [..., C] of prompt vectors [..., C]; flags [...] say which are given. A DiT's is [..., 3 C]."""
        variables = {"params": params["prompt_encoder"]}
        return prompt_encoder.apply(variables, text, trajectory, has_text, has_trajectory, method="fuse")

    def fuse(params: dict, text: Array, trajectory: Array, has_text: Array, has_trajectory: Array) -> Context:
        """Contexts of prompt vectors [..., C]; flags [...] say which are given (the others' contents are ignored)."""
        no = jnp.zeros_like(has_text)
        flags = (has_text, has_trajectory), (no, has_trajectory), (has_text, no)
        return Context(*(fuse_vectors(params, text, trajectory, *f) for f in flags))

    # --- losses ------------------------------------------------------------------------------------------------------
    def total_loss(params: dict, state: TrainState, batch: Batch, text: TextPrompt, key: Array, llm: FrozenLLM | None):
        """Sum of all losses, and metrics. Each term's gradient reaches only what it should teach (see `stop`)."""
        stop = jax.lax.stop_gradient
        if llm is not None:
            text = tuned_prompt(llm, params["llm"], text)
        key_text, key_trajectory, key_mask, key_read, key_core = draws.split(key, 5)
        observations, actions = batch.observations, batch.actions

        # Independent dropout per prompt: one set of parameters serves no prompt, either, and both.
        groups = batch.task_id.shape
        has_text = draws.bernoulli(key_text, 1.0 - agent.text_dropout, groups)
        has_trajectory = draws.bernoulli(key_trajectory, 1.0 - agent.trajectory_dropout, groups)
        # Steps of the trajectory prompt are left out at random: a reader of parts cannot know an episode by heart.
        keep = draws.bernoulli(key_mask, 1.0 - agent.prompt_step_dropout, batch.prompt.mask.shape)
        trajectory = batch.prompt.replace(mask=batch.prompt.mask & keep)
        vectors = read_text(params, text, key_read), read_trajectory(params, trajectory)
        meant = vectors  # of the tasks to act in: the groups' own, or imaginary ones
        if agent.imaginary_share:
            key_mix, key_core = draws.split(key_core, 2)
            mixing = mixing_weights(key_mix, groups, agent.imaginary_share)
            meant = tuple(mix_with_next(axis, x, mixing) for x in vectors)
        context = fuse_vectors(params, *meant, has_text, has_trajectory)[:, None]
        if agent.detach_context:
            context = stop(context)

        # What a context should know, be it of the text, the trajectory or both: the reward and the next observation of
        # any transition of its task. Each reader is taught this at every update, whatever dropout leaves of prompts.
        yes, no = jnp.ones(groups, bool), jnp.zeros(groups, bool)
        told = jnp.stack([fuse_vectors(params, *vectors, *flags) for flags in ((yes, no), (no, yes), (yes, yes))])
        told = fused_context(model, told)
        predicted = task_model.apply({"params": params["model"]}, observations, actions, told[:, :, None])
        outcome = jnp.concatenate([batch.rewards[..., None], batch.next_observations - observations], axis=-1)
        outcome = outcome / agent.chunk  # per step: else it would count the more, the longer the chunk
        # Rewards count as much as observations, however many numbers those have: often they alone tell tasks.
        errors = (predicted - outcome) ** 2
        model_loss = 0.5 * (jnp.mean(errors[..., 0]) + jnp.mean(errors[..., 1:]))
        alignment = alignment_loss(told[0], told[1], batch.task_id, axis)
        consistency = consistency_loss(told[0], batch.task_id, axis)

        # How far an action may be moved from the logged ones is measured by how widely those vary around their mean: Q
        # is known there and nowhere else. So narrow data are cloned closely, wide data are left to Q. The prediction is
        # made from both prompts: not knowing the task would count as width.
        mean_action = behaviour.apply({"params": params["behaviour"]}, observations, None, stop(told[-1])[:, None])
        behaviour_loss = jnp.mean(weigh(jnp.mean((mean_action - actions) ** 2, axis=-1), batch))
        spread = jnp.maximum(mean_across(axis, stop(behaviour_loss)), SMALLEST_SPREAD)

        if agent.imaginary_share:
            # In an imaginary task the model says what an action is rewarded with. What follows it is what was logged.
            full = fused_context(model, fuse_vectors(params, *meant, yes, yes))[:, None]
            imagined = task_model.apply({"params": params["model"]}, observations, actions, full)[..., 0]
            imagined = stop(imagined * agent.chunk)
            batch = batch.replace(rewards=jnp.where(mixing[:, None] > 0, imagined, batch.rewards))
        core_loss, metrics = core.loss(params, state, batch, context, key_core, spread)
        loss = (
            core_loss
            + behaviour_loss
            + agent.model_weight * model_loss
            + agent.alignment_weight * alignment
            + agent.consistency_weight * consistency
        )
        metrics |= {
            "loss/total": loss,
            "loss/model": model_loss,
            "loss/behaviour": behaviour_loss,
            "loss/alignment": alignment,
            "loss/consistency": consistency,
            "spread": spread,
        }
        return loss, metrics

    def update(
        state: TrainState, batch: Batch, text: TextPrompt, key: Array, llm: FrozenLLM | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One gradient step on all networks, then the slow copies follow. Where a student is distilled, on it alone.

        Args:
          batch, text: G groups, and a description [G, L, ...] for each.
          key: one, or one for each group, [G].
          llm: the one that is tuned, if any is.
        """
        distils = bool(config.train.distill_from)
        learning = {STUDENT: state.params[STUDENT]} if distils else state.params

        def loss(learning: dict) -> tuple[Array, dict[str, Array]]:
            return total_loss(state.params | learning, state, batch, text, key, llm)

        grads, metrics = mean_across(axis, jax.grad(loss, has_aux=True)(learning))
        metrics["grad_norm"] = gradient_norm(grads, config)
        if distils:
            # What is measured of networks that stay as they are is not asked for, so it is not computed.
            metrics = {name: metrics[name] for name in (*STUDENT_METRICS, "grad_norm")}
            grads = jax.tree.map(jnp.zeros_like, state.params) | grads
        return next_state(state, grads, optimiser, agent), metrics

    return Agent(init, update, read_text, read_trajectory, fuse, core.act, core.values)
