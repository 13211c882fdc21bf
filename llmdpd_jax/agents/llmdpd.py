"""LLM-Driven Policy Diffusion (Zhang & Guo 2025, arXiv 2509.00347): prompt-conditioned Diffusion-QL.

One file, read downwards: configuration -> networks -> losses -> update -> acting. All arrays are in the networks' units
(`normalise_*` in `llmdpd_jax.data.normalise`); G groups of S transitions share one task and its prompts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct

from llmdpd_jax.diffusion import process
from llmdpd_jax.diffusion.guidance import Guidance, combine
from llmdpd_jax.diffusion.samplers import sample
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.critic import ConditionedMLP, Critic
from llmdpd_jax.models.denoiser import MLPDenoiser
from llmdpd_jax.models.llm.tuning import FrozenLLM, tuned_prompt
from llmdpd_jax.models.prompt_encoder import PromptEncoder
from llmdpd_jax.types import Array, Batch, TextPrompt, TrajectoryPrompt

POLICY_IMPROVEMENTS = ("one_step", "full_chain")
SMALLEST_SPREAD = 1e-4  # variance of actions in [-1, 1] below which the behaviour counts as deterministic
ALIGNMENT_TEMPERATURE = 0.1  # of cosine similarities


@struct.dataclass
class TrainState:
    """Everything that training changes. The LLM's own weights are not here: they are frozen."""

    step: Array  # [] int32, updates done
    params: dict  # prompt_encoder, denoiser, critic, model, behaviour; llm if it is tuned
    target_critic: dict  # slow copy of params["critic"] for the critic's targets
    ema: dict  # slow copy of prompt_encoder and denoiser, and llm if it is tuned: the policy that acts
    opt_state: optax.OptState


@struct.dataclass
class Context:
    """What the policy knows of its task, once with all prompts and once without each: guidance needs the three."""

    full: Array  # [..., C]
    without_text: Array  # [..., C]
    without_trajectory: Array  # [..., C]


class Agent(NamedTuple):
    """The method as pure functions."""

    init: Callable[..., TrainState]
    update: Callable[..., tuple[TrainState, dict[str, Array]]]
    read_text: Callable[[dict, TextPrompt], Array]
    read_trajectory: Callable[[dict, TrajectoryPrompt], Array]
    fuse: Callable[[dict, Array, Array, Array, Array], Context]
    act: Callable[..., Array]
    values: Callable[..., Array]


def alignment_loss(text: Array, trajectory: Array, task_id: Array) -> Array:
    """Contrastive alignment: a text should resemble the trajectories of its task more than those of others. [].

    InfoNCE in both directions (CLIP, Radford et al. 2021, arXiv 2103.00020), with every pair of one task a positive
    (supervised form, Khosla et al. 2020, arXiv 2004.11362, eq. 2), since a batch may hold a task several times.

    Args:
      text, trajectory: [G, C] contexts of the text and of the trajectory prompt of G groups.
      task_id: int [G].
    """
    text, trajectory = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (text, trajectory))
    similarity = text @ trajectory.T / ALIGNMENT_TEMPERATURE
    same = task_id[:, None] == task_id
    positives = same / same.sum(axis=-1, keepdims=True)
    return -0.5 * sum(
        jnp.mean(jnp.sum(positives * jax.nn.log_softmax(scores), axis=-1)) for scores in (similarity, similarity.T)
    )


def consistency_loss(contexts: Array, task_id: Array) -> Array:
    """Mean squared difference of the contexts [G, C] of groups of one task (int [G]); 0 if no two are of one task. [].

    All descriptions of a task should read the same. Outcomes alone teach that only as far as they depend on it, and a
    policy that sees sentences differ acts on the difference where it has not learned better: on unseen tasks.
    """
    same = (task_id[:, None] == task_id) & ~jnp.eye(len(task_id), dtype=bool)
    apart = jnp.mean((contexts[:, None] - contexts) ** 2, axis=-1)
    return jnp.sum(jnp.where(same, apart, 0.0)) / jnp.maximum(jnp.sum(same), 1)


def make_agent(config: ml_collections.ConfigDict, observation_size: int, action_size: int) -> Agent:
    """Builds the method from the `model`, `diffusion`, `agent` and `optimiser` sections of a config.

    Raises:
      UserError: a choice that does not exist.
    """
    model, diffusion, agent = config.model, config.diffusion, config.agent
    if diffusion.parameterisation not in process.PARAMETERISATIONS:
        raise UserError(
            f"diffusion.parameterisation: {diffusion.parameterisation!r} is unknown; "
            f"choose one of {list(process.PARAMETERISATIONS)}"
        )
    if agent.policy_improvement not in POLICY_IMPROVEMENTS:
        raise UserError(
            f"agent.policy_improvement: {agent.policy_improvement!r} is unknown; choose one of "
            f"{list(POLICY_IMPROVEMENTS)}"
        )

    # --- networks ----------------------------------------------------------------------------------------------------
    schedule = make_schedule(diffusion.schedule, diffusion.steps, diffusion.time_draw)
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
    )
    denoiser = MLPDenoiser(model.width, model.depth, model.denoiser_activation)
    critic = Critic(model.critic_ensemble, model.width, model.depth, model.critic_activation, model.critic_layer_norm)
    # Predicts reward and change of observation from (s, a, context): it teaches the prompt encoder what a task is.
    task_model = ConditionedMLP(1 + observation_size, model.model_width, 2)
    # Predicts the logged action from (s, context): what it leaves unexplained is how widely the behaviour policy acted.
    behaviour = ConditionedMLP(action_size, model.model_width, 2)

    def adam(learning_rate: float) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(
            learning_rate, config.train.steps, config.optimiser.final_learning_rate_fraction
        )
        return optax.adamw(decay, weight_decay=config.optimiser.weight_decay)

    steps = adam(config.optimiser.learning_rate)
    if config.text.lora_rank or config.text.soft_tokens:
        rates = {"networks": steps, "llm": adam(config.optimiser.llm_learning_rate)}
        steps = optax.partition(rates, lambda params: {n: "llm" if n == "llm" else "networks" for n in params})
    optimiser = optax.chain(optax.clip_by_global_norm(config.optimiser.clip_norm), steps)

    def init(key: Array, batch: Batch, text: TextPrompt, tuning: dict | None = None) -> TrainState:
        """Initial state for inputs of the given shapes; `tuning`: of an LLM that is tuned, what is trained of it."""
        keys = jax.random.split(key, 5)
        groups = batch.task_id.shape
        flags = jnp.ones(groups, bool)
        encoder_params = prompt_encoder.init(keys[0], text, batch.prompt, flags, flags)["params"]
        context = jnp.zeros((*groups, 1, model.context_width))
        k = jnp.ones(batch.actions.shape[:-1])
        params = {
            "prompt_encoder": encoder_params,
            "denoiser": denoiser.init(keys[1], batch.actions, k, batch.observations, context)["params"],
            "critic": critic.init(keys[2], batch.observations, batch.actions, context)["params"],
            "model": task_model.init(keys[3], batch.observations, batch.actions, context)["params"],
            "behaviour": behaviour.init(keys[4], batch.observations, None, context)["params"],
        } | ({"llm": tuning} if tuning else {})
        acting = [name for name in ("prompt_encoder", "denoiser", "llm") if name in params]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            target_critic=jax.tree.map(jnp.copy, params["critic"]),
            ema=jax.tree.map(jnp.copy, {name: params[name] for name in acting}),
            opt_state=optimiser.init(params),
        )

    # --- prompts -----------------------------------------------------------------------------------------------------
    def read_text(params: dict, text: TextPrompt, key: Array | None = None) -> Array:
        """Vectors [..., C] of text prompts [..., L]; with a key as in training (`TextReader`)."""
        return prompt_encoder.apply({"params": params["prompt_encoder"]}, text, key, method="read_text")

    def read_trajectory(params: dict, trajectory: TrajectoryPrompt) -> Array:
        """Vectors [..., C] of trajectory prompts [..., T]."""
        return prompt_encoder.apply({"params": params["prompt_encoder"]}, trajectory, method="read_trajectory")

    def fuse_vectors(params: dict, text: Array, trajectory: Array, has_text: Array, has_trajectory: Array) -> Array:
        """One context [..., C] of prompt vectors [..., C]; flags [...] say which are given."""
        variables = {"params": params["prompt_encoder"]}
        return prompt_encoder.apply(variables, text, trajectory, has_text, has_trajectory, method="fuse")

    def fuse(params: dict, text: Array, trajectory: Array, has_text: Array, has_trajectory: Array) -> Context:
        """Contexts of prompt vectors [..., C]; flags [...] say which are given (the others' contents are ignored)."""
        no = jnp.zeros_like(has_text)
        flags = (has_text, has_trajectory), (no, has_trajectory), (has_text, no)
        return Context(*(fuse_vectors(params, text, trajectory, *f) for f in flags))

    # --- the denoiser as a sampler sees it ---------------------------------------------------------------------------
    def predict(params: dict, x: Array, t: Array, observation: Array, context: Array) -> tuple[Array, Array]:
        """The denoiser's raw output and the clean action it stands for, clipped to the action bounds. [..., A] each."""
        seen = process.network_input(schedule, x, t)
        output = denoiser.apply({"params": params}, seen, t * schedule.steps, observation, context)
        x0 = process.to_x0(diffusion.parameterisation, schedule, output, x, t)
        return output, jnp.clip(x0, -1.0, 1.0)

    def sample_actions(params: dict, observation: Array, context: Array, key: Array, sampler: str, steps: int) -> Array:
        """Actions [..., A] drawn from the policy for observations [..., O]."""

        def denoise(x, t):
            return predict(params, x, t, observation, context)[1]

        return sample(sampler, denoise, schedule, key, (*observation.shape[:-1], action_size), steps)

    # --- losses ------------------------------------------------------------------------------------------------------
    def total_loss(params: dict, state: TrainState, batch: Batch, text: TextPrompt, key: Array, llm: FrozenLLM | None):
        """Sum of all losses, and metrics. Each term's gradient reaches only what it should teach (see `stop`)."""
        stop = jax.lax.stop_gradient
        if llm is not None:
            text = tuned_prompt(llm, params["llm"], text)
        keys = jax.random.split(key, 8)
        key_text, key_trajectory, key_mask, key_noise, key_time, key_next, key_chain, key_read = keys
        observations, actions = batch.observations, batch.actions

        # Independent dropout per prompt: one set of parameters serves no prompt, either, and both.
        groups = batch.task_id.shape
        has_text = jax.random.bernoulli(key_text, 1.0 - agent.text_dropout, groups)
        has_trajectory = jax.random.bernoulli(key_trajectory, 1.0 - agent.trajectory_dropout, groups)
        # Steps of the trajectory prompt are left out at random: a reader of parts cannot know an episode by heart.
        keep = jax.random.bernoulli(key_mask, 1.0 - agent.prompt_step_dropout, batch.prompt.mask.shape)
        trajectory = batch.prompt.replace(mask=batch.prompt.mask & keep)
        vectors = read_text(params, text, key_read), read_trajectory(params, trajectory)
        context = fuse_vectors(params, *vectors, has_text, has_trajectory)[:, None]
        if agent.detach_context:
            context = stop(context)

        # What a context should know, be it of the text, the trajectory or both: the reward and the next observation of
        # any transition of its task. Each reader is taught this at every update, whatever dropout leaves of prompts.
        yes, no = jnp.ones(groups, bool), jnp.zeros(groups, bool)
        told = jnp.stack([fuse_vectors(params, *vectors, *flags) for flags in ((yes, no), (no, yes), (yes, yes))])
        predicted = task_model.apply({"params": params["model"]}, observations, actions, told[:, :, None])
        outcome = jnp.concatenate([batch.rewards[..., None], batch.next_observations - observations], axis=-1)
        model_loss = jnp.mean((predicted - outcome) ** 2)
        alignment = alignment_loss(told[0], told[1], batch.task_id)
        consistency = consistency_loss(told[0], batch.task_id)

        # Behaviour cloning: the denoising loss (Ho et al. 2020, eq. 14).
        t = process.sample_time(key_time, schedule, actions.shape[:-1])
        noise = jax.random.normal(key_noise, actions.shape)
        x = process.add_noise(schedule, actions, t, noise)
        output, x0 = predict(params["denoiser"], x, t, observations, context)
        target = process.network_target(diffusion.parameterisation, schedule, actions, t, noise)
        weight = process.loss_weight(diffusion.loss_weights, diffusion.parameterisation, schedule, t)
        cloning_loss = jnp.mean(weight[..., None] * (output - target) ** 2)

        # How far an action may be moved from the logged ones is measured by how widely those vary around their mean: Q
        # is known there and nowhere else. So narrow data are cloned closely, wide data are left to Q. The prediction is
        # made from both prompts: not knowing the task would count as width.
        mean_action = behaviour.apply({"params": params["behaviour"]}, observations, None, stop(told[-1])[:, None])
        behaviour_loss = jnp.mean((mean_action - actions) ** 2)
        spread = jnp.maximum(stop(behaviour_loss), SMALLEST_SPREAD)

        # Policy improvement: raise Q of the policy's own action (Diffusion-QL, arXiv 2208.06193, eq. 3), either through
        # the whole chain or through the clean action rebuilt in one step (EDP, arXiv 2305.20081, section 3.2).
        if agent.policy_improvement == "full_chain":
            x0 = sample_actions(
                params["denoiser"], observations, stop(context), key_chain, "ancestral", diffusion.steps
            )
        value = critic.apply({"params": stop(params["critic"])}, observations, x0, stop(context))
        value = value[0]
        policy_loss = -jnp.mean(value) / stop(jnp.mean(jnp.abs(value)))

        # Critic: one-step temporal difference with next actions sampled from the slow policy (paper, eq. 6).
        next_actions = sample_actions(
            state.ema["denoiser"],
            batch.next_observations,
            stop(context),
            key_next,
            "ancestral",
            agent.target_sampling_steps,
        )
        next_value = critic.apply(
            {"params": state.target_critic}, batch.next_observations, next_actions, stop(context)
        ).min(axis=0)
        target_value = stop(batch.rewards + agent.discount * (1.0 - batch.terminations) * next_value)
        values = critic.apply({"params": params["critic"]}, observations, actions, context)
        critic_loss = jnp.mean((values - target_value) ** 2)

        loss = (
            agent.cloning_weight * cloning_loss / spread
            + behaviour_loss
            + agent.eta * policy_loss
            + agent.critic_weight * critic_loss
            + agent.model_weight * model_loss
            + agent.alignment_weight * alignment
            + agent.consistency_weight * consistency
        )
        metrics = {
            "loss/total": loss,
            "loss/cloning": cloning_loss,
            "loss/policy": policy_loss,
            "loss/critic": critic_loss,
            "loss/model": model_loss,
            "loss/behaviour": behaviour_loss,
            "loss/alignment": alignment,
            "loss/consistency": consistency,
            "spread": spread,
            "value/mean": jnp.mean(values),
            "value/policy": jnp.mean(value),
        }
        return loss, metrics

    def update(
        state: TrainState, batch: Batch, text: TextPrompt, key: Array, llm: FrozenLLM | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One gradient step on all networks, then the slow copies follow. `llm`: the one that is tuned, if any is."""
        grads, metrics = jax.grad(total_loss, has_aux=True)(state.params, state, batch, text, key, llm)
        metrics["grad_norm"] = optax.tree.norm(grads)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        acting = {name: params[name] for name in state.ema}
        return (
            TrainState(
                step=state.step + 1,
                params=params,
                target_critic=optax.incremental_update(params["critic"], state.target_critic, agent.tau),
                ema=optax.incremental_update(acting, state.ema, 1.0 - agent.ema_decay),
                opt_state=opt_state,
            ),
            metrics,
        )

    # --- acting ------------------------------------------------------------------------------------------------------
    def act(
        params: dict,
        observation: Array,
        context: Context,
        key: Array,
        sampler: str = "ddim",
        steps: int | None = None,
        guidance: Guidance | None = None,
    ) -> Array:
        """Actions [..., A] for observations [..., O] and contexts [..., C] that broadcast with them.

        Without guidance one network call per sampler step, with it three in one batch.
        """
        if guidance is None:
            return sample_actions(params["denoiser"], observation, context.full, key, sampler, steps)
        contexts = jnp.stack([context.full, context.without_text, context.without_trajectory])
        # One context may serve many observations: the axis of three must stay in front of the axes it lacks.
        contexts = jnp.expand_dims(contexts, tuple(range(1, 1 + observation.ndim - context.full.ndim)))

        def denoise(x, t):
            estimates = predict(params["denoiser"], x[None], t[None], observation[None], contexts)[1]
            return jnp.clip(combine(guidance, *estimates), -1.0, 1.0)

        return sample(sampler, denoise, schedule, key, (*observation.shape[:-1], action_size), steps)

    def values(params: dict, observation: Array, action: Array, context: Context) -> Array:
        """Q of every critic [ensemble, ...] for actions in the networks' units."""
        return critic.apply({"params": params["critic"]}, observation, action, context.full)

    return Agent(init, update, read_text, read_trajectory, fuse, act, values)
