"""Vectorised evaluation: every task, prompt and episode in one compiled rollout, or in Gymnasium environments."""

import hashlib
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmdpd_jax.agents.diffusion_ql import STUDENT, Context
from llmdpd_jax.config import to_json
from llmdpd_jax.data.collect import roll_out
from llmdpd_jax.data.environments import find_reference
from llmdpd_jax.data.normalise import normalise_trajectory
from llmdpd_jax.data.sampler import sample_prompts
from llmdpd_jax.data.store import load_split
from llmdpd_jax.diffusion.guidance import Guidance, check_guidance
from llmdpd_jax.diffusion.samplers import Sampler, check_temperature, find_sampler, make_grid
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.figures import Rollouts
from llmdpd_jax.evaluation.gymnasium_rollout import UNKNOWN, recover_environments, roll_out_in_gymnasium
from llmdpd_jax.evaluation.results import PROMPTS, SPLITS, Results, Row
from llmdpd_jax.parallel import DATA, copied, data_mesh, failing_together, place
from llmdpd_jax.policy import Policy
from llmdpd_jax.tasks.environment import TaskEnv
from llmdpd_jax.tasks.family import PlaneView, TaskFamily, TimeView, get_family
from llmdpd_jax.tasks.manifest import Manifest, TaskEntry, require_split
from llmdpd_jax.types import Array, TrajectoryPrompt


class Setting(NamedTuple):
    """What the policy is told."""

    prompt: str  # one of PROMPTS
    wording: str  # "seen" or "held_out"; "seen" where there is no text

    @property
    def has_text(self) -> bool:
        return self.prompt in ("text", "text+trajectory")

    @property
    def has_trajectory(self) -> bool:
        return self.prompt in ("trajectory", "text+trajectory")


def make_contexts(
    policy: Policy, params: dict, text: Array, trajectory: TrajectoryPrompt, has_text: Array, has_trajectory: Array
) -> Context:
    """Contexts [M, N, E, ...] of M settings x N tasks x E episodes; arguments as those of a rollout."""
    agent, batch = policy.checkpoint.agent, text.shape[:-1]
    vectors = jnp.broadcast_to(agent.read_trajectory(params, trajectory), text.shape)
    flags = (jnp.broadcast_to(flag[:, None, None], batch) for flag in (has_text, has_trajectory))
    return agent.fuse(params, text, vectors, *flags)


def make_rollout(
    policy: Policy,
    env: TaskEnv,
    horizon: int,
    sampler: str | Sampler,
    steps: int | None,
    best_of: int = 1,
    execute: int | None = None,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
) -> Callable:
    """The compiled rollout of M settings x N tasks x E episodes; `execute` as for `Policy.steps_per_call`.

    Args:
      mesh: of the devices that the episodes are divided among; None: there is one. What is drawn is the same on any.

    Returns:
      `(params, guidance, text, trajectory, has_text, has_trajectory, parameters, key) -> (returns, observations)` for
      text vectors [M, N, E, C], trajectory prompts [N, E, T, ...], flags [M] and task parameters [N, P]; returns
      [M, N, E] are undiscounted sums up to the episode's end, observations are [M, N, E, horizon + 1, O], NaN after it.
    """
    act = partial(policy.act_function, sampler=sampler, steps=steps, best_of=best_of, temperature=temperature)
    execute = policy.steps_per_call(execute)
    calls = -(-horizon // execute)

    # All that is asked and found is on every device, and on every host.
    whole = None if mesh is None else copied(mesh)

    def divide(rows: Array, count: int) -> Array:
        """Rows [B, ...] of `count` episodes, divided among the devices; the first are repeated to make it even."""
        if mesh is None:
            return rows
        rows = rows[jnp.arange(-(-count // mesh.size) * mesh.size) % count]
        return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec(DATA)))

    @partial(jax.jit, out_shardings=whole)
    def rollout(
        params: dict,
        guidance: Guidance | None,
        text: Array,
        trajectory: TrajectoryPrompt,
        has_text: Array,
        has_trajectory: Array,
        parameters: Array,
        key: Array,
    ) -> tuple[Array, Array]:
        batch = text.shape[:-1]  # [M, N, E]
        key_reset, key_act = jax.random.split(key)

        context = make_contexts(policy, params, text, trajectory, has_text, has_trajectory)
        count = math.prod(batch)
        context, parameters = jax.tree.map(
            lambda x: divide(x.reshape(-1, x.shape[-1]), count),
            (context, jnp.broadcast_to(parameters[:, None], (*batch, parameters.shape[-1]))),
        )
        # The same start in every setting, so that settings differ in nothing but what the policy is told.
        keys = divide(jnp.broadcast_to(jax.random.split(key_reset, batch[1:]), batch).reshape(-1), count)
        start = jax.vmap(env.reset_task)(keys, parameters)

        def step(carry, action):
            state, running = carry
            state = jax.vmap(env.step)(state, action)
            reward = jnp.where(running, state.reward, 0.0)
            observation = jnp.where(running[:, None], state.obs, jnp.nan)
            return (state, running & (state.done == 0)), (reward, observation)

        def call(carry, key):
            """The policy is asked once, and what it answers is carried out."""
            planned = act(params, carry[0].obs, context, key, guidance)
            planned = planned.reshape(len(planned), policy.chunk, policy.action_size)[:, :execute].swapaxes(0, 1)
            return jax.lax.scan(step, carry, planned)

        running = jnp.ones(start.reward.shape, bool)
        _, steps_done = jax.lax.scan(call, (start, running), jax.random.split(key_act, calls))
        # Of the last call, the steps beyond the horizon do not count.
        rewards, observations = (x.reshape(-1, *x.shape[2:])[:horizon, :count] for x in steps_done)
        observations = jnp.concatenate([start.obs[None, :count], observations]).swapaxes(0, 1)
        return rewards.sum(axis=0).reshape(batch), observations.reshape(*batch, *observations.shape[1:])

    return rollout


def on_all(arguments: Any, mesh: Mesh | None) -> Any:
    """Arguments of a rollout on all devices of its mesh."""
    return arguments if mesh is None else place(arguments, copied(mesh))


def evaluation_family(manifest: Manifest, policy: Policy) -> TaskFamily:
    """The registered family to roll out in.

    Raises:
      UserError: the manifest names none, or one of other sizes than the policy's; it has no test task, or misses what
        scoring needs.
    """
    if manifest.env is None:
        raise UserError(f'{manifest.where}: names no "env"; a sweep needs a registered task family')
    _check_tasks(manifest, "parameters", "reference", "descriptions")
    family = get_family(manifest.env)
    found, expected = (family.observation_size, family.action_size), (policy.observation_size, policy.action_size)
    if found != expected:
        raise UserError(
            f'{manifest.where}: "env": observations and actions of {manifest.env!r} hold {found} numbers, the '
            f"policy's {expected}; name the family that its data are of"
        )
    return family


def _check_tasks(manifest: Manifest, *fields: str) -> None:
    """Raises UserError unless there is a test task and all tasks have the fields."""
    require_split(manifest, "test")
    for task in manifest.tasks:
        for field in fields:
            if not getattr(task, field):
                raise UserError(f'{manifest.where}: task {task.name!r} has no "{field}", which evaluation needs')


def evaluate(
    policy: Policy,
    manifest: Manifest,
    *,
    episodes: int | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: Guidance | None = None,
    best_of: int | None = None,
    temperature: float | None = None,
    execute: int | None = None,
    backend: str | None = None,
    variant: str = "",
    seed: int = 0,
    workers: int | None = None,
    devices: int = 0,
    test_only: bool = False,
    progress: bool = True,
) -> tuple[Results, Rollouts | None]:
    """Scores a policy on all tasks of a manifest, told nothing, by text (seen and held-out wordings), trajectory, both.

    A manifest that names a registered family is rolled out there; any other one in the tasks' Gymnasium environments.
    The episodes of a task are told different descriptions of it; the trajectory prompt of an episode is a random logged
    episode of that task. Train and test tasks are rolled out together and reported apart.

    Args:
      episodes, sampler, steps, best_of, temperature, execute, backend: None takes the policy's config (`evaluation`).
      guidance: weights of the prompts and the critic; None takes the config's, where 1, 1 and 0 is plain conditioning.
      variant: names an ablation or baseline in the rows.
      seed: of starts, prompts and noise.
      workers: processes that step Gymnasium environments; None takes as many as there are CPUs for.
      devices: that a registered family is rolled out on, of all processes; 0 is all.
      test_only: leaves out train tasks, which are most of the work.

    Returns:
      The results, and the test tasks' rollouts to draw, if a family says how.

    Raises:
      UserError: nothing to evaluate in, data that do not fit the policy, an unknown sampler or backend, too many steps,
        or a weight that is not finite.
    """
    started = time.monotonic()
    if test_only:
        require_split(manifest, "test")
        manifest = replace(manifest, tasks=tuple(task for task in manifest.tasks if task.split == "test"))
    settings = policy.config.evaluation
    backend = settings.backend if backend is None else backend
    if manifest.env is not None:
        family = evaluation_family(manifest, policy)
        env = family.environment(backend)
    else:
        if backend:
            raise UserError(f"evaluation: Gymnasium environments have no physics backend {backend!r} of Brax's")
        _check_tasks(manifest, "descriptions")
        environments = recover_environments(manifest, policy.observation_size, policy.action_size)
        tasks = tuple(replace(task, reference=find_reference(task, manifest.where)) for task in manifest.tasks)
        manifest = replace(manifest, tasks=tasks)
    episodes = settings.episodes if episodes is None else episodes
    if episodes < 1:
        raise UserError(f"evaluation: {episodes} episodes per task; at least 1 is needed")
    sampler = settings.sampler if sampler is None else sampler
    steps = settings.steps if steps is None else steps
    best_of = settings.best_of if best_of is None else best_of
    if best_of < 1:
        raise UserError(f"evaluation: the best of {best_of} actions; at least 1 is needed")
    temperature = check_temperature(settings.temperature if temperature is None else temperature)
    execute = policy.steps_per_call(execute)
    if sampler != STUDENT:
        diffusion = policy.config.diffusion
        find_sampler(sampler)
        make_grid(make_schedule(diffusion.schedule, diffusion.steps, diffusion.time_draw), steps)
    if guidance is None:
        guidance = Guidance(settings.text_guidance, settings.trajectory_guidance, settings.critic_guidance or None)
    check_guidance(guidance)

    weighed = None if guidance == Guidance() else guidance
    mesh = data_mesh(devices)
    given = ask(policy, manifest, episodes, seed, progress)
    if manifest.env is not None:
        mesh = mesh if jax.device_count() > 1 else None
        rollout = make_rollout(policy, env, family.horizon, sampler, steps, best_of, execute, temperature, mesh)
        parameters = family_parameters(family, given.tasks, manifest.where)
        found = rollout(*on_all((policy.params, weighed, *given.prompts, parameters, given.key), mesh))
        (returns, observations), success = jax.device_get(found), None
        rollouts = _test_rollouts(family, given.tasks, observations[: len(PROMPTS)])
    else:
        returns, success = roll_out_in_gymnasium(
            policy,
            jax.jit(partial(make_contexts, policy))(policy.params, *given.prompts),
            [environments[task.name] for task in given.tasks],
            seed,
            execute,
            workers,
            progress,
            guidance=weighed,
            sampler=sampler,
            steps=steps,
            best_of=best_of,
            temperature=temperature,
        )
        rollouts = None
    how = (sampler if sampler == STUDENT else f"{sampler}-{steps}") + of_draws(best_of)
    how += at_temperature(temperature) + of_chunk(policy, execute) + in_physics(backend)
    labels = {"sampler": how, "guidance": weights(guidance), "seed": policy.config.seed, "variant": variant}
    rows = given.rows(returns, success, **labels)
    return make_results(policy, manifest, rows, started), rollouts


def of_draws(best_of: int) -> str:
    """How many actions the critics choose from, as the sampler of a row of results names it; "" where they do not."""
    return f", best of {best_of}" if best_of > 1 else ""


def at_temperature(temperature: float) -> str:
    """The scale of the noise, as the sampler of a row of results names it; "" for all of it."""
    return f", temperature {temperature:g}" if temperature != 1.0 else ""


def of_chunk(policy: Policy, execute: int | None = None) -> str:
    """How many actions of a chunk are carried out, as the sampler of a row of results names it; "" without chunks."""
    return f", {policy.steps_per_call(execute)} of {policy.chunk} actions" if policy.chunk > 1 else ""


def in_physics(backend: str) -> str:
    """Another physics than the family's own, as the sampler of a row of results names it; "" for its own."""
    return f", {backend} physics" if backend else ""


def weights(guidance: Guidance) -> dict[str, float]:
    """The weights as a row of results names them."""
    named = {"text": guidance.text, "trajectory": guidance.trajectory, "critic": guidance.critic}
    return {name: float(weight) for name, weight in named.items() if weight is not None}


@dataclass(frozen=True)
class Given:
    """What a rollout is given: N tasks, M settings, E episodes."""

    tasks: list[TaskEntry]  # test tasks first
    settings: list[Setting]
    prompts: tuple  # arguments of a rollout: text, trajectory, has_text, has_trajectory
    key: Array  # of the rollout

    def rows(self, returns: np.ndarray, success: np.ndarray | None = None, **labels: Any) -> list[Row]:
        """Rows of results, of returns [M, N, E] and successes [M, N, E], some of which may be UNKNOWN."""
        return [
            Row.scored(
                returns=returns[m, n],
                success=None if success is None or UNKNOWN in success[m, n] else success[m, n],
                random=task.reference.random,
                expert=task.reference.expert,
                split=task.split,
                prompt=setting.prompt,
                wording=setting.wording,
                task=task.name,
                **labels,
            )
            for m, setting in enumerate(self.settings)
            for n, task in enumerate(self.tasks)
            if setting.wording == "seen" or task.held_out_descriptions
        ]


@failing_together("preparing prompts")
def ask(policy: Policy, manifest: Manifest, episodes: int, seed: int, progress: bool) -> Given:
    """What a policy is asked to do: all tasks, told nothing, by text (seen and held-out wordings), trajectory, both."""
    key_prompts, key_rollout = jax.random.split(jax.random.key(seed))
    tasks = [task for split in SPLITS for task in manifest.tasks if task.split == split]
    settings = [Setting(prompt, "seen") for prompt in PROMPTS]
    if any(task.held_out_descriptions for task in tasks):
        settings += [Setting(s.prompt, "held_out") for s in settings if s.has_text]
    told = {
        "seen": [list(task.descriptions) for task in tasks],
        # A task without held-out wordings is told seen ones, and has no row of those settings.
        "held_out": [list(task.held_out_descriptions or task.descriptions) for task in tasks],
    }
    texts = {
        wording: _text_vectors(policy, descriptions, episodes, progress)
        for wording, descriptions in told.items()
        if any(s.wording == wording for s in settings)
    }
    prompts = (
        jnp.stack([texts[s.wording] for s in settings]),
        _trajectory_prompts(policy, manifest, episodes, key_prompts, progress),
        jnp.array([s.has_text for s in settings]),
        jnp.array([s.has_trajectory for s in settings]),
    )
    return Given(tasks, settings, prompts, key_rollout)


def family_parameters(family: TaskFamily, tasks: Sequence[TaskEntry], where: str) -> Array:
    """The tasks' parameters [N, P], as a rollout takes them."""
    return jnp.asarray(np.stack([family.parameter_array(t.parameters, f"{where}: {t.name}") for t in tasks]))


def make_results(policy: Policy, manifest: Manifest, rows: Sequence[Row], started: float) -> Results:
    """The rows with what they were measured with; `started` is of `time.monotonic`."""
    return Results(
        family=manifest.family,
        checkpoint=str(policy.checkpoint.path),
        git=git_commit(),
        config_hash=hashlib.sha256(to_json(policy.config).encode()).hexdigest()[:16],
        device=jax.devices()[0].device_kind,
        wall_s=round(time.monotonic() - started, 3),
        rows=tuple(rows),
    )


def _text_vectors(policy: Policy, descriptions: list[list[str]], episodes: int, progress: bool) -> Array:
    """Text vectors [N, E, C] of the descriptions that the episodes are told.

    Episodes of a task go through its descriptions in equal strides, from task to task one further, so that few episodes
    of many tasks still meet all wordings.
    """
    told = [
        each[(n + e * len(each) // episodes) % len(each)]
        for n, each in enumerate(descriptions)
        for e in range(episodes)
    ]
    prompts = policy.read_descriptions(told, progress)
    vectors = jax.jit(policy.checkpoint.agent.read_text)(policy.params, prompts)
    return vectors.reshape(len(descriptions), episodes, -1)


def _trajectory_prompts(
    policy: Policy, manifest: Manifest, episodes: int, key: Array, progress: bool
) -> TrajectoryPrompt:
    """A logged trajectory of the task for every episode, in the networks' units: [N, E, T, ...], test tasks first."""
    prompts = []
    for split, key_split in zip(SPLITS, jax.random.split(key), strict=True):
        if not any(task.split == split for task in manifest.tasks):
            continue
        data = load_split(manifest, split, progress)
        found, expected = (data.observation_size, data.action_size), (policy.observation_size, policy.action_size)
        if found != expected:
            raise UserError(f"{manifest.where}: observations and actions hold {found} numbers, the policy's {expected}")
        count, settings = len(data.split.tasks), policy.config.data
        numbers = np.repeat(np.arange(count), episodes)
        drawn = sample_prompts(data.store, key_split, numbers, settings.prompt_length, settings.prompt_share)
        prompts.append(jax.tree.map(lambda x, n=count: x.reshape(n, episodes, *x.shape[1:]), drawn))
    prompt = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *prompts)
    return normalise_trajectory(policy.checkpoint.statistics, prompt)


def _test_rollouts(family: TaskFamily, tasks: list[TaskEntry], observations: np.ndarray) -> Rollouts:
    """What the report draws: the test tasks' episodes under seen wordings. observations [M, N, E, T + 1, O]."""
    test = [n for n, task in enumerate(tasks) if task.split == "test"]
    chosen = [(tasks[n].name, tasks[n].parameters, tasks[n].descriptions[0]) for n in test]
    return make_rollouts(family, chosen, PROMPTS, observations[:, test])


def make_rollouts(
    family: TaskFamily,
    tasks: Sequence[tuple[str, Mapping[str, float], str]],
    prompts: Sequence[str],
    observations: np.ndarray,
) -> Rollouts:
    """Episodes to draw, of tasks (name, parameters, description); observations [M, N, E, T + 1, O] as of a rollout."""
    names, parameters, descriptions = zip(*tasks, strict=True)
    view, plane, series = family.view, isinstance(family.view, PlaneView), isinstance(family.view, TimeView)

    def told(*chosen: str) -> np.ndarray:
        return np.array([[each[name] for name in chosen] for each in parameters], np.float32)

    return Rollouts(
        observations=observations.swapaxes(0, 1),
        tasks=names,
        prompts=tuple(prompts),
        descriptions=descriptions,
        plane=view.position if plane else None,
        goals=told(*view.goal) if plane and view.goal else None,
        series=(view.observation, view.label) if series else None,
        targets=told(view.target)[:, 0] if series and view.target else None,
        walls=_stack_padded([view.walls(each) for each in parameters]) if plane and view.walls else None,
    )


def play(family: TaskFamily, qualities: Sequence[str] = ("random", "medium", "expert"), episodes: int = 2) -> Rollouts:
    """Episodes of a family's behaviour policies on its test tasks, to draw; `UserError` for an unknown one."""
    tasks = [task for task in family.tasks() if task.split == "test"]
    parameters = np.stack([family.parameter_array(task.parameters) for task in tasks])
    seeds = jax.random.bits(jax.random.key(0), (len(tasks), episodes))
    played = []
    for quality in qualities:
        episode = jax.device_get(jax.jit(partial(roll_out, family, quality))(seeds, parameters))
        ended = np.cumsum(episode.terminations, axis=-1) - episode.terminations > 0  # [N, E, T]
        played.append(np.array(episode.observations))
        played[-1][:, :, 1:][ended] = np.nan
    chosen = [(t.name, t.parameters, family.descriptions(t.parameters, held_out=False)[0]) for t in tasks]
    return make_rollouts(family, chosen, qualities, np.stack(played))


def _stack_padded(rows: list[np.ndarray]) -> np.ndarray:
    """Arrays [W, ...] of several lengths as one [N, W, ...] float32, with NaN behind the shorter ones."""
    padded = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), np.nan, np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def git_commit() -> str:
    """Commit of the checkout this code runs from, with "-dirty" when it differs; empty outside a checkout.

    What is installed below a checkout of something else, as in its virtual environment, is no part of that.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return ""
