"""Diffusion-QL (Wang et al. 2023, arXiv 2208.06193) given a context: a denoiser clones, a critic improves.

Nothing here knows what a context is made of (`llmdpd.py` does); one of width 0 is none, and what is left is the
single-task method. Read downwards: networks -> losses -> update -> acting. All arrays are in the networks' units
(`normalise_*` in `llmdpd_jax.data.normalise`); batches have any leading axes, and contexts broadcast with them.

An action is `agent.chunk` steps (Q-chunking, Li et al. 2025, arXiv 2507.07969): below, A counts the numbers of all of
them, and rewards, next observations and values are those after the last (`sample_batch`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from llmdpd_jax import draws
from llmdpd_jax.diffusion import process
from llmdpd_jax.diffusion.guidance import Guidance, combine, follow
from llmdpd_jax.diffusion.samplers import check_temperature, sample
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.models.critic import ConditionedMLP, Critic
from llmdpd_jax.models.denoiser import fused_context, make_denoiser
from llmdpd_jax.models.llm.tuning import tunes_llm
from llmdpd_jax.parallel import mean_across
from llmdpd_jax.types import Array, Batch

POLICY_IMPROVEMENTS = ("one_step", "full_chain", "weighted", "student")
STUDENT = "student"  # as a sampler: the student's one network call
MOST_WEIGHT = 100.0  # of a logged action in critic-weighted cloning (IQL)
SMALLEST_ADVANTAGE = 1e-6  # mean size below which advantages count as none
ACTING = ("prompt_encoder", "denoiser", "student", "llm")  # networks that act, where there are such
STUDENT_METRICS = ("loss/policy", "loss/student", "value/policy")  # those that a student has a part in


@struct.dataclass
class TrainState:
    """Everything that training changes. The LLM's own weights are not here: they are frozen."""

    step: Array  # [] int32, updates done
    params: dict  # prompt_encoder, denoiser, critic, model, behaviour; student, value, llm if there is one
    target_critic: dict  # slow copy of params["critic"] for the critic's targets
    ema: dict  # slow copy of what acts: prompt_encoder and denoiser; student and llm if there is one
    opt_state: optax.OptState

    @property
    def acting(self) -> dict:
        """The parameters that `Agent.act` asks for: the slow copies, and the critic."""
        return {**self.ema, "critic": self.params["critic"]}


@struct.dataclass
class Context:
    """What the policy knows of its task, once with all prompts and once without each: guidance needs the three.

    For a transformer as denoiser the vectors of text and trajectory prompt follow: [..., 3 C] (`PromptEncoder`).
    """

    full: Array  # [..., C]
    without_text: Array  # [..., C]
    without_trajectory: Array  # [..., C]


class DiffusionQL(NamedTuple):
    """The method as pure functions."""

    init: Callable[[Array, Batch, Array], dict]
    loss: Callable[..., tuple[Array, dict[str, Array]]]
    act: Callable[..., Array]
    values: Callable[..., Array]


def make_diffusion_ql(
    config: ml_collections.ConfigDict, observation_size: int, action_size: int, axis: str | None = None
) -> DiffusionQL:
    """Builds the method from the `model`, `diffusion` and `agent` sections of a config.

    Args:
      action_size: of one step.
      axis: name of the axis over whose devices a batch is divided, if it is: what losses are scaled by is then of the
        whole batch, and their means have to be averaged over the axis.

    Raises:
      UserError: a choice that does not exist.
    """
    model, diffusion, agent = config.model, config.diffusion, config.agent
    action_size = agent.chunk * action_size
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
    denoiser = make_denoiser(model, agent.chunk)
    critic_shape = model.width, model.depth, model.critic_activation, model.critic_layer_norm, model.dtype
    critic, one_critic = Critic(model.critic_ensemble, *critic_shape), Critic(1, *critic_shape)
    # What policy improvement may need beside them. The student is a denoiser that is only ever asked about pure noise.
    student = make_denoiser(model, agent.chunk)
    state_value = ConditionedMLP(1, *critic_shape)
    improvement = agent.policy_improvement

    def init(key: Array, batch: Batch, context: Array) -> dict:
        """Initial parameters for inputs of the given shapes."""
        key_denoiser, key_critic, key_improvement = jax.random.split(key, 3)
        k, fused = jnp.ones(batch.actions.shape[:-1]), fused_context(model, context)
        params = {
            "denoiser": denoiser.init(key_denoiser, batch.actions, k, batch.observations, context)["params"],
            "critic": critic.init(key_critic, batch.observations, batch.actions, fused)["params"],
        }
        if improvement == "student":
            params["student"] = student.init(key_improvement, batch.actions, k, batch.observations, context)["params"]
        if improvement == "weighted":
            params["value"] = state_value.init(key_improvement, batch.observations, None, fused)["params"]
        return params

    # --- the denoiser as a sampler sees it ---------------------------------------------------------------------------
    def predict(params: dict, x: Array, t: Array, observation: Array, context: Array) -> tuple[Array, Array]:
        """The denoiser's raw output and the clean action it stands for, within the action bounds. [..., A] each."""
        seen = process.network_input(schedule, x, t)
        output = denoiser.apply({"params": params}, seen, t * schedule.steps, observation, context)
        x0 = process.to_x0(diffusion.parameterisation, schedule, output, x, t)
        return output, process.within_bounds(diffusion.bounds, x0)

    def ask_student(params: dict, noise: Array, observation: Array, context: Array) -> Array:
        """What the student makes of noise [..., A] in one call: actions [..., A], before they are clipped."""
        k = jnp.full((1,) * (noise.ndim - 1), float(schedule.steps))
        return student.apply({"params": params}, noise, k, observation, context)

    def sample_actions(
        params: dict, observation: Array, context: Array, key: Array, sampler: str, steps: int, **options
    ) -> Array:
        """Actions [..., A] drawn from the denoiser for observations [..., O]; options as for `sample`."""

        def denoise(x, t):
            return predict(params, x, t, observation, context)[1]

        return sample(sampler, denoise, schedule, key, (*observation.shape[:-1], action_size), steps, **options)

    # --- losses ------------------------------------------------------------------------------------------------------
    def loss(
        params: dict, state: TrainState, batch: Batch, context: Array, key: Array, spread: Array | float = 1.0
    ) -> tuple[Array, dict[str, Array]]:
        """Sum of the losses, and metrics. Each term's gradient reaches only what it should teach (see `stop`).

        Args:
          context: [..., C] that broadcast with the batch; only cloning sends them a gradient.
          spread: [], variance of the logged actions: the less they vary, the more cloning weighs against Q.
        """
        stop = jax.lax.stop_gradient
        key_noise, key_time, key_next, key_chain = draws.split(key, 4)
        observations, actions = batch.observations, batch.actions
        fused = fused_context(model, context)

        # Behaviour cloning: the denoising loss (Ho et al. 2020, eq. 14).
        t = process.sample_time(key_time, schedule, actions.shape[:-1])
        noise = draws.normal(key_noise, actions.shape)
        x = process.add_noise(schedule, actions, t, noise)
        output, x0 = predict(params["denoiser"], x, t, observations, context)
        target = process.network_target(diffusion.parameterisation, schedule, actions, t, noise)
        weight = process.loss_weight(diffusion.loss_weights, diffusion.parameterisation, schedule, t)
        errors = weigh(weight * jnp.mean((output - target) ** 2, axis=-1), batch)
        cloning_loss = jnp.mean(errors)

        def raise_q(action: Array) -> tuple[Array, Array]:
            """Loss [] of actions [..., A] that should have a high Q (Diffusion-QL, arXiv 2208.06193, eq. 3), and Q."""
            first = jax.tree.map(lambda p: stop(p[:1]), params["critic"])
            q = one_critic.apply({"params": first}, observations, action, stop(fused))[0]
            return -jnp.mean(q) / mean_across(axis, stop(jnp.mean(jnp.abs(q)))), q

        # Policy improvement: what the denoiser learns beside cloning, and what the critic's targets take for the value
        # of the next observation.
        def next_value(sampled: Array) -> Array:
            """The least of the slow critics' values [...] of actions at the next observations (TD3)."""
            variables = {"params": state.target_critic}
            return critic.apply(variables, batch.next_observations, sampled, stop(fused)).min(axis=0)

        def value_of_sampled() -> Array:
            """... of actions drawn from the slow policy (paper, eq. 6)."""
            chain = state.ema["denoiser"], batch.next_observations, stop(context), key_next
            return next_value(sample_actions(*chain, "ancestral", agent.target_sampling_steps))

        if improvement in ("one_step", "full_chain"):
            # Q is raised through the clean action rebuilt in one step (EDP, arXiv 2305.20081, section 3.2), or through
            # the whole chain (Diffusion-QL).
            if improvement == "full_chain":
                chain = params["denoiser"], observations, stop(context), key_chain
                x0 = sample_actions(*chain, "ancestral", diffusion.steps)
            policy_loss, q = raise_q(x0)
            imitation = agent.cloning_weight * cloning_loss / spread
            following = value_of_sampled()
        elif improvement == "student":
            # The denoiser clones and no more. The student gives in one call what the denoiser gives in a chain from the
            # same noise, as far as Q lets it (Flow Q-learning, arXiv 2502.02538, eq. 8).
            key_start, key_chain = draws.split(key_chain, 2)
            start = draws.normal(key_start, actions.shape)
            chain = params["denoiser"], observations, context, key_chain, "ddim", diffusion.steps
            goal = stop(sample_actions(*chain, noise=start))
            action = ask_student(params["student"], start, observations, stop(context))
            policy_loss, q = raise_q(jnp.clip(action, -1.0, 1.0))
            student_loss = jnp.mean((action - goal) ** 2)
            imitation = cloning_loss + agent.cloning_weight * student_loss / spread
            start = draws.normal(key_next, actions.shape)
            sampled = ask_student(state.ema["student"], start, batch.next_observations, stop(context))
            following = next_value(jnp.clip(sampled, -1.0, 1.0))
        else:
            # Logged actions are cloned the more, the better the critic thinks of them than of their like (IDQL, arXiv
            # 2304.10573; IQL, arXiv 2110.06169, eq. 5 and 7). No action is ever asked for that was not logged.
            q = stop(critic.apply({"params": state.target_critic}, observations, actions, fused).min(axis=0))
            v, following = (
                state_value.apply({"params": params["value"]}, seen, None, stop(fused))[..., 0]
                for seen in (observations, stop(batch.next_observations))
            )
            gap = q - v
            imitation = jnp.mean(jnp.where(gap > 0, agent.expectile, 1.0 - agent.expectile) * gap**2)  # of v
            size = jnp.maximum(mean_across(axis, stop(jnp.mean(jnp.abs(gap)))), SMALLEST_ADVANTAGE)
            advantage = stop(gap / size)
            preference = jnp.minimum(jnp.exp(agent.advantage_weight * advantage), MOST_WEIGHT)
            policy_loss = jnp.mean(preference * errors)

        # Critic: temporal difference over the steps of an action.
        discount = agent.discount**agent.chunk
        target_value = stop(batch.rewards + discount * (1.0 - batch.terminations) * following)
        values = critic.apply({"params": params["critic"]}, observations, actions, fused)
        critic_loss = jnp.mean((values - target_value) ** 2)

        total = imitation + agent.eta * policy_loss + agent.critic_weight * critic_loss
        metrics = {
            "loss/cloning": cloning_loss,
            "loss/policy": policy_loss,
            "loss/critic": critic_loss,
            "value/mean": jnp.mean(values),
            "value/policy": jnp.mean(q),
        }
        if improvement == "student":
            metrics["loss/student"] = student_loss
        return total, metrics

    # --- acting ------------------------------------------------------------------------------------------------------
    def act(
        params: dict,
        observation: Array,
        context: Context,
        key: Array,
        sampler: str = "ddim",
        steps: int | None = None,
        guidance: Guidance | None = None,
        best_of: int = 1,
        warm_start: tuple[Array, float] | None = None,
        temperature: float = 1.0,
    ) -> Array:
        """Actions [..., A] for observations [..., O] and contexts [..., C] that broadcast with them.

        Without guidance one network call per sampler step, with it three in one batch.

        Args:
          params: `TrainState.acting`.
          key: one, or one for each entry of the observations' first axes, [...].
          sampler: a name in SAMPLERS, or "student" for the student's one call, which takes no `steps`.
          best_of: how many actions to draw, of which the one that the critics (their minimum) value most is taken.
          warm_start: actions [..., A] to start from, and the time they are noised to (`sample`).
          temperature: scale of the noise that actions are made from (`sample`).

        Raises:
          UserError: unknown sampler, impossible steps, best_of or temperature, or a policy without a student.
        """
        check_temperature(temperature)
        if best_of < 1:
            raise UserError(f"best_of: {best_of} is out of range; at least 1 action has to be drawn")
        if best_of > 1:
            observation = jnp.broadcast_to(observation, (best_of, *observation.shape))
            key = draws.split(key, best_of)
        shape = (*observation.shape[:-1], action_size)
        # One context may serve many observations: the axis of three must stay in front of the axes it lacks.
        contexts = jnp.stack([context.full, context.without_text, context.without_trajectory])
        contexts = jnp.expand_dims(contexts, tuple(range(1, 1 + observation.ndim - context.full.ndim)))

        def guided(network: Callable[[Array, Array], Array], sigma: Array) -> Array:
            """Clean actions [..., A] by a network of (observation, context), at noise sigma [...]."""
            if guidance is None:
                return network(observation, context.full)
            x0 = within(combine(guidance, *network(observation[None], contexts)))
            if guidance.critic is None:
                return x0
            gradient = jax.grad(lambda x0: jnp.sum(values(params, observation, x0, context).mean(axis=0)))(x0)
            return within(follow(guidance.critic, sigma, x0, gradient))

        within = partial(process.within_bounds, diffusion.bounds)
        if sampler == STUDENT:
            if "student" not in params:
                raise UserError(
                    "sampler: 'student' needs a policy that has one; train with agent.policy_improvement=student"
                )
            if warm_start is not None:
                raise UserError("sampler: a student acts in one call, which a warm start cannot shorten")
            noise = temperature * draws.normal(key, shape)
            asked = partial(ask_student, params["student"], noise)
            actions = guided(lambda *seen: jnp.clip(asked(*seen), -1.0, 1.0), jnp.ones(shape[:-1]))
        else:

            def denoise(x, t):
                return guided(lambda *seen: predict(params["denoiser"], x, t, *seen)[1], schedule.at(t)[1])

            actions = sample(
                sampler, denoise, schedule, key, shape, steps, warm_start=warm_start, temperature=temperature
            )
        if best_of == 1:
            return actions
        best = values(params, observation, actions, context).min(axis=0).argmax(axis=0)
        return jnp.take_along_axis(actions, best[None, ..., None], axis=0)[0]

    def values(params: dict, observation: Array, action: Array, context: Context) -> Array:
        """Q of every critic [ensemble, ...] for actions in the networks' units."""
        members = jax.tree.map(jnp.asarray, params["critic"])  # a custom gradient under vmap takes no NumPy arrays
        return critic.apply({"params": members}, observation, action, fused_context(model, context.full))

    return DiffusionQL(init, loss, act, values)


def weigh(errors: Array, batch: Batch) -> Array:
    """Errors [...] of cloning the transitions of a batch, by how much each of them counts."""
    return errors if batch.weights is None else batch.weights * errors


# --- update ----------------------------------------------------------------------------------------------------------


def in_a_row(config: ml_collections.ConfigDict) -> bool:
    """Whether the whole gradient is put in one array: many fewer kernels to compile and to start than with one for each
    parameter. Arrays that may be divided among devices stay apart."""
    return config.train.form != "fsdp" and not tunes_llm(config)


def gradient_norm(grads: dict, config: ml_collections.ConfigDict) -> Array:
    """Norm [] of the whole gradient, before it is clipped."""
    return optax.tree.norm(ravel_pytree(grads)[0] if in_a_row(config) else grads)


def make_optimiser(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """AdamW with a cosine decay, after the global norm of the gradient is clipped; of what the config lets learn."""

    def adam(learning_rate: float) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(
            learning_rate, config.train.steps, config.optimiser.final_learning_rate_fraction
        )
        return optax.adamw(decay, weight_decay=config.optimiser.weight_decay)

    steps = adam(config.optimiser.learning_rate)
    if tunes_llm(config):
        rates = {"networks": steps, "llm": adam(config.optimiser.llm_learning_rate)}
        steps = optax.partition(rates, lambda params: {n: "llm" if n == "llm" else "networks" for n in params})
    optimiser = optax.chain(optax.clip_by_global_norm(config.optimiser.clip_norm), steps)
    if in_a_row(config):
        optimiser = optax.flatten(optimiser)
    if config.train.distill_from:  # all but the student is another run's and stays as it is
        parts = {"student": optimiser, "rest": optax.set_to_zero()}
        optimiser = optax.partition(parts, lambda params: {n: "student" if n == "student" else "rest" for n in params})
    return optimiser


def first_state(params: dict, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first update of parameters that were just drawn."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_critic=jax.tree.map(jnp.copy, params["critic"]),
        ema=jax.tree.map(jnp.copy, {name: params[name] for name in ACTING if name in params}),
        opt_state=optimiser.init(params),
    )


def next_state(
    state: TrainState, grads: dict, optimiser: optax.GradientTransformation, agent: ml_collections.ConfigDict
) -> TrainState:
    """The state after one gradient step on all networks; then the slow copies follow."""
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    acting = {name: params[name] for name in state.ema}
    return TrainState(
        step=state.step + 1,
        params=params,
        target_critic=optax.incremental_update(params["critic"], state.target_critic, agent.tau),
        ema=optax.incremental_update(acting, state.ema, 1.0 - agent.ema_decay),
        opt_state=opt_state,
    )
