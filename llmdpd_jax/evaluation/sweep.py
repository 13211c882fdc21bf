"""Samplers x steps x guidance weights, all in one compiled rollout: what acting costs, and what it gains."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llmdpd_jax.agents.diffusion_ql import STUDENT
from llmdpd_jax.diffusion.guidance import Guidance, check_guidance
from llmdpd_jax.diffusion.samplers import TABLES, find_sampler, make_grid, stack_tables, walk
from llmdpd_jax.diffusion.schedules import make_schedule
from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.results import (
    RESULTS_FILE,
    Results,
    check_target,
    load_results,
    merge_results,
    write_results,
)
from llmdpd_jax.evaluation.rollout import (
    ask,
    at_temperature,
    evaluate,
    evaluation_family,
    family_parameters,
    in_physics,
    make_results,
    make_rollout,
    of_chunk,
    of_draws,
    on_all,
    weights,
)
from llmdpd_jax.parallel import copied, data_mesh, failing_together, is_leader, wait_for_all
from llmdpd_jax.policy import Policy, load_policy
from llmdpd_jax.tasks.manifest import Manifest, load_manifest
from llmdpd_jax.training.checkpoint import digest


def sweep(
    policy: Policy,
    manifest: Manifest,
    *,
    samplers: Sequence[str] = ("ddim", "dpm_solver", "ancestral"),
    steps: Sequence[int] = (1, 2, 3, 5),
    text_guidance: Sequence[float] = (1.0,),
    trajectory_guidance: Sequence[float] = (1.0,),
    episodes: int | None = None,
    seed: int = 0,
    devices: int = 0,
    progress: bool = True,
) -> Results:
    """Scores every combination on all tasks, as `evaluate` does, with the same starts, prompts and noise.

    Samplers are tables of coefficients and weights are arrays, so one compiled call holds them all; every combination
    costs as many network calls as the longest. A policy that has a student is scored with it, too. Temperature, weight
    of the critic and the best of how many actions are those of the policy's config (`evaluation`).

    Raises:
      UserError: as `evaluate`; an empty list, or a sampler or number of steps that does not suit the policy.
    """
    started = time.monotonic()
    family, settings = evaluation_family(manifest, policy), policy.config.evaluation
    episodes, temperature = settings.episodes if episodes is None else episodes, settings.temperature
    lists = {"samplers": samplers, "steps": steps, "text": text_guidance, "trajectory": trajectory_guidance}
    for name, values in lists.items():
        if not values or len(set(values)) < len(values):
            raise UserError(f"sweep: {name} should be distinct values, at least one; found {list(values)}")
    for name in samplers:
        find_sampler(name)
    diffusion = policy.config.diffusion
    schedule = make_schedule(diffusion.schedule, diffusion.steps, diffusion.time_draw)
    ways = list(product(samplers, steps))
    tables = jax.tree.map(jnp.asarray, stack_tables([TABLES[name](make_grid(schedule, n)) for name, n in ways]))
    best_of, critic = settings.best_of, settings.critic_guidance or None
    weighed = product(text_guidance, trajectory_guidance)
    guidances = [check_guidance(Guidance(*pair, critic)) for pair in weighed]
    plain = guidances == [Guidance()]
    stacked = jax.tree.map(lambda *each: jnp.array(each, jnp.float32), *guidances)

    mesh = data_mesh(devices)
    given = ask(policy, manifest, episodes, seed, progress)
    parameters = family_parameters(family, given.tasks, manifest.where)
    mesh = mesh if jax.device_count() > 1 else None
    env = family.environment(settings.backend)

    @partial(jax.jit, out_shardings=None if mesh is None else copied(mesh))
    def returns_of(params, tables, guidances, arguments):
        """[ways, guidances, M, N, E]."""

        def one(table, guidance):
            def sampler(denoise, grid, key, x, temperature):
                return walk(table, denoise, key, x, temperature)

            how = {"best_of": best_of, "temperature": temperature, "mesh": mesh}
            rollout = make_rollout(policy, env, family.horizon, sampler, None, **how)
            return rollout(params, None if plain else guidance, *arguments)[0]

        return jax.vmap(lambda table: jax.vmap(partial(one, table))(guidances))(tables)

    arguments = (*given.prompts, parameters, given.key)
    returns = jax.device_get(returns_of(*on_all((policy.params, tables, stacked, arguments), mesh)))
    rows = []
    for (sampler, n), of_way in zip(ways, returns, strict=True):
        for guidance, found in zip(guidances, of_way, strict=True):
            how = f"{sampler}-{n}" + of_draws(best_of) + at_temperature(temperature)
            how += of_chunk(policy) + in_physics(settings.backend)
            rows += given.rows(found, sampler=how, guidance=weights(guidance), seed=policy.config.seed)
    if STUDENT in policy.params:
        alike = {"episodes": episodes, "seed": seed, "devices": devices, "progress": progress}
        student, _ = evaluate(policy, manifest, sampler=STUDENT, guidance=Guidance(critic=critic), **alike)
        rows += student.rows
    return make_results(policy, manifest, rows, started)


def sweep_runs(runs: Sequence[Path], out: Path, manifest: Path | None = None, **how: Any) -> Results:
    """Sweeps over several runs or checkpoints into one `out/results.json`.

    What is found of each is kept in `out/parts`, and not computed again while checkpoint, manifest and options are the
    same: a sweep that was stopped goes on. Checkpoints of one seed are told apart by their variant, which is the path
    as given.

    Args:
      manifest: of the tasks; None: of each run's own.
      **how: as for `sweep`.

    Raises:
      UserError: as `sweep`; a run is given twice, the runs are of different families, or `out` cannot be written to.
    """
    with failing_together("loading the policies"):
        check_target(out / RESULTS_FILE)
        policies = [load_policy(run) for run in runs]
    paths = [str(policy.checkpoint.path) for policy in policies]
    if len(set(paths)) < len(paths):
        raise UserError(f"sweep: {max(paths, key=paths.count)} is given twice")
    seeds = [policy.config.seed for policy in policies]
    parts = []
    for run, path, policy in zip(runs, paths, policies, strict=True):
        tasks = load_manifest(manifest or policy.config.data.manifest)
        contents = _content(policy), hashlib.sha256(tasks.path.read_bytes()).hexdigest()
        asked = json.dumps([path, contents, how], sort_keys=True)
        file = out / "parts" / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            found = sweep(policy, tasks, **how)
            if is_leader():
                write_results(file, found)
            wait_for_all("part of a sweep")
        part = load_results(file)
        if len(set(seeds)) < len(seeds):
            part = replace(part, rows=tuple(replace(row, variant=str(run)) for row in part.rows))
        parts.append(part)
    merged = merge_results(parts)
    if is_leader():
        write_results(out / RESULTS_FILE, merged)
    return merged


def _content(policy: Policy) -> str:
    """Digest of all that a policy acts by: parameters, units, config and LLM."""
    checkpoint = policy.checkpoint
    arrays = digest((policy.params, checkpoint.statistics, checkpoint.text_statistics))
    return hashlib.sha256((arrays + json.dumps(checkpoint.metadata, sort_keys=True)).encode()).hexdigest()
