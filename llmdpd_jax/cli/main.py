"""The `llmdpd` command. Subcommands import what they need when they run: `llmdpd doctor` works on a broken install."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llmdpd_jax.errors import ProcessLost, UserError, out_of_memory, why_not_writable

_GUIDANCE = ("text_guidance", "trajectory_guidance", "critic_guidance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's own) and returns its exit status.

    0 done; 1 `doctor` found something missing; 2 bad input, explained in one message; 130 stopped by a signal.
    """
    overrides, others = split_overrides(sys.argv[1:] if arguments is None else arguments)
    options = make_parser().parse_args(others)
    if overrides and options.command is not train:
        print(f"error: {overrides[0]}: only `llmdpd train` takes a config", file=sys.stderr)
        return 2
    options.overrides = overrides
    try:
        if not 0 <= getattr(options, "seed", 0) < 2**32:
            raise UserError(f"--seed: {options.seed} is out of range; it must be between 0 and {2**32 - 1}")
        if options.command in (collect, expert, embed, train, distill, evaluate, sweep, export):
            keep_compiled()
        if hasattr(options, "coordinator"):
            join(options)
        return options.command(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, ProcessLost):
            sys.stdout.flush()
            os._exit(2)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain_limits(options.command.__name__, error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that belong to a config, each as --config...=VALUE even if written in two, and all others."""
    overrides, others, waits = [], [], False
    for argument in arguments:
        if waits and not argument.startswith("--"):
            overrides[-1] += f"={argument}"
            waits = False
        elif argument.startswith("--config"):
            overrides.append(argument)
            waits = "=" not in argument
        else:
            others.append(argument)
            waits = False
    return overrides, others


def explain_limits(command: str, error: Exception) -> str | None:
    """What to do where memory or disk do not suffice; None: the error is about neither."""
    if out_of_memory(error):
        lower = {
            "evaluate": "Lower --episodes or --best-of; in Gymnasium environments also --workers",
            "sweep": "Lower --episodes, or name fewer samplers, steps or weights: all are scored at once",
            "embed": "Lower --batch-tokens",
            "export": "Lower --best-of",
        }
        hint = lower.get(command, "Choose a smaller setting")
        return f"{command}: ran out of memory ({(str(error) or 'host memory').splitlines()[0][:300]}). {hint}"
    reason = why_not_writable(error)
    if reason is not None:
        return f"{command}: cannot write ({reason}). Files that were there before are as they were; run it again"
    return None


def keep_compiled() -> None:
    """Has JAX keep what it compiles beside the weights, for the next start, unless it was told where to or not to."""
    import jax

    from llmdpd_jax.models.llm.weights import cache_folder

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))


def join(options) -> None:
    """Makes this process one of several, if the options or the cluster it was started in say so."""
    from llmdpd_jax.parallel import in_a_cluster, join_processes

    given = options.coordinator, options.num_processes, options.process_id
    if options.distributed or in_a_cluster() or any(value is not None for value in given):
        join_processes(*given)


def make_parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    parser = argparse.ArgumentParser("llmdpd", description=__doc__.split(".")[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function):
        name = function.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=function.__doc__.splitlines()[0], allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    def add_devices(sub):
        sub.add_argument("--devices", type=int, default=0, help="how many to use (default: all of all processes)")
        sub.add_argument(
            "--distributed", action="store_true", help="as one of several processes, which find each other"
        )
        sub.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process, where they do not")
        sub.add_argument("--num-processes", type=int, metavar="N", help="with --coordinator")
        sub.add_argument("--process-id", type=int, metavar="I", help="with --coordinator: 0 to N - 1")

    sub = add(tasks)
    sub.add_argument("--family", help="list the tasks and descriptions of this family")
    sub.add_argument("--render", type=Path, metavar="FILE.png", help="draw its test tasks as its policies play them")

    sub = add(collect)
    sub.add_argument("--family", default="point_robot", help="task family (default: %(default)s)")
    sub.add_argument("--quality", default="mixed", help="random, replay, medium, mixed, expert (default: %(default)s)")
    sub.add_argument("--episodes", type=int, default=100, help="per task (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, help="folder of tasks.json (default: data/FAMILY)")
    sub.add_argument("--overwrite", action="store_true", help="write data sets anew that are already there")
    meta = sub.add_argument_group("Meta-World", "of --family=metaworld-ml1-NAME, -ml10, -ml45, -18 (extra metaworld)")
    meta.add_argument("--horizon", type=int, help="steps of an episode (default: 500, the most)")
    meta.add_argument("--goals", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="per task (default: by the set)")
    meta.add_argument("--workers", type=int, help="processes that log (default: one for each CPU)")

    sub = add(expert)
    sub.add_argument("--family", required=True, help="task family")
    sub.add_argument("--task", help="train on this one task instead of all")
    sub.add_argument("--steps", type=int, default=12_000_000, help="of the environment (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, help="file to write (default: runs/experts/FAMILY.safetensors)")

    sub = add(embed)
    sub.add_argument("--fetch", action="store_true", help="only obtain the LLM's weights")
    sub.add_argument("--manifest", type=Path, help="embed every description of this tasks.json")
    sub.add_argument("--file", help="embed a text file's lines, each a description; - is standard input")
    sub.add_argument("--list", action="store_true", help="show what the cache holds")
    sub.add_argument("--clear", action="store_true", help="delete what the cache holds of the source, or --all")
    sub.add_argument("--source", help="LLM, as text.source of a config (default: smollm2)")
    sub.add_argument("--layer", type=int, help="LLM block to read, as text.layer (default: 10; --clear: all)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="also write the prompts to FILE.safetensors")
    sub.add_argument("--batch-tokens", type=int, help="tokens a device reads at once (default: by the device)")
    sub.add_argument("--all", action="store_true", help="with --clear: of every source, unknown ones too")
    sub.add_argument("--yes", action="store_true", help="with --clear: do not ask")

    sub = add(validation)
    sub.add_argument("manifest", type=Path, help="tasks.json whose train tasks are divided")
    sub.add_argument("--tasks", type=int, default=9, help="train tasks to hold out (default: %(default)s)")
    sub.add_argument("--descriptions", type=int, default=0, help="descriptions per task to hold out (default: none)")
    sub.add_argument("--seed", type=int, default=0, help="of the choice")
    sub.add_argument("--out", type=Path, required=True, help="folder of the new tasks.json")

    sub = add(train)
    sub.add_argument("--out", type=Path, help="run folder; goes on if it holds a run of the same config")
    sub.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run, by its folder alone")
    sub.add_argument("--seeds", type=int, metavar="N", help="of so many seeds, side by side, in folders of their own")
    add_devices(sub)
    sub.usage = "llmdpd train --config=FILE [--config.section.field=VALUE ...] --out=RUN | --resume=RUN"

    sub = add(distill)
    sub.add_argument("run", type=Path, help="run folder of the policy, or one checkpoint in it")
    sub.add_argument("--out", type=Path, required=True, help="run folder of the student")
    sub.add_argument("--manifest", help="tasks.json (default: the one of the run)")
    sub.add_argument("--updates", type=int, default=3000, help="of the student (default: %(default)s)")
    sub.add_argument("--eta", type=float, help="weight of the critic's say beside the teacher's (default: the run's)")
    sub.add_argument("--seed", type=int, default=0, help="of the student and its batches")

    sub = add(evaluate)
    sub.add_argument("run", type=Path, help="run folder, or one checkpoint in it")
    sub.add_argument("--manifest", type=Path, help="tasks.json (default: the one of the run)")
    sub.add_argument("--episodes", type=int, help="per task, prompt and wording (default: the run's config)")
    sub.add_argument("--sampler", help="ddim, dpm_solver, student, ... (default: the run's config)")
    sub.add_argument("--steps", type=int, help="of the sampler (default: the run's config)")
    sub.add_argument("--best-of", type=int, help="actions drawn, the critics choose (default: the run's config)")
    sub.add_argument("--temperature", type=float, help="scale of the noise; 0 is none (default: the run's config)")
    sub.add_argument("--execute", type=int, help="of a chunk's actions, those carried out; 0 is all (default: config)")
    sub.add_argument("--backend", help="physics of Brax's robots (default: the run's config, or the family's own)")
    _add_guidance(sub)
    sub.add_argument("--variant", default="", help="name of an ablation or baseline, kept in the results")
    sub.add_argument("--seed", type=int, default=0, help="of starts, prompts and noise")
    sub.add_argument("--test-only", action="store_true", help="leave out train tasks, which are most of the work")
    sub.add_argument("--workers", type=int, help="processes that step Gymnasium environments (default: by CPUs)")
    add_devices(sub)
    sub.add_argument("--out", type=Path, help="folder of results.json and report.html (default: the run folder)")

    sub = add(sweep)
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, or one checkpoint in it")
    sub.add_argument("--manifest", type=Path, help="tasks.json (default: the one of each run)")
    sub.add_argument("--samplers", nargs="+", default=["ddim", "dpm_solver", "ancestral"], metavar="NAME")
    sub.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 5], metavar="N", help="of each sampler")
    sub.add_argument("--text-guidance", nargs="+", type=float, default=[1.0], metavar="W", help="weights of the text")
    sub.add_argument("--trajectory-guidance", nargs="+", type=float, default=[1.0], metavar="W", help="... trajectory")
    sub.add_argument("--episodes", type=int, help="per task, prompt and wording (default: the run's config)")
    sub.add_argument("--seed", type=int, default=0, help="of starts, prompts and noise")
    sub.add_argument("--out", type=Path, required=True, help="folder of results.json and sweep.png")
    add_devices(sub)

    sub = add(export)
    sub.add_argument("run", type=Path, help="run folder, or one checkpoint in it")
    sub.add_argument("--out", type=Path, required=True, help="folder to write; with --weights-only FILE.safetensors")
    sub.add_argument("--platforms", nargs="+", metavar="NAME", help="it can run on (default: cpu cuda tpu)")
    sub.add_argument("--text", nargs="+", help="what it is told for good (default: it takes prompts when it is used)")
    sub.add_argument("--trajectory", nargs="+", type=Path, metavar="FILE.npz", help="what it is shown for good")
    sub.add_argument("--sampler", help="ddim, dpm_solver, student, ... (default: the run's config)")
    sub.add_argument("--steps", type=int, help="of the sampler (default: the run's config)")
    sub.add_argument("--best-of", type=int, help="actions drawn, the critics choose (default: the run's config)")
    sub.add_argument("--temperature", type=float, help="scale of the noise; 0 is none (default: the run's config)")
    _add_guidance(sub)
    sub.add_argument("--weights-only", action="store_true", help="write parameters and units and no program")

    sub = add(report)
    sub.add_argument("runs", type=Path, nargs="+", help="run folder; several are merged into one table")
    sub.add_argument("--out", type=Path, help="folder of the merged results (needed for several runs)")

    sub = add(bench)
    sub.add_argument("name", help="what to measure: train, sample, step-cost, env, eval, seeds, stream, text")
    sub.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    sub.add_argument("--threads", type=int, help="CPUs each side may use (default: all of this process)")
    sub.add_argument("--repeats", type=int, default=5, help="turns of each side; medians count (default: %(default)s)")
    sub.add_argument("--source", default="smollm2", help="LLM, as text.source of a config (default: %(default)s)")
    sub.add_argument("--family", default="cheetah_vel", help="task family of env and eval (default: %(default)s)")

    add(doctor)
    return parser


def _add_guidance(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--text-guidance", type=float, help="weight of the text prompt (default: the run's config)")
    sub.add_argument("--trajectory-guidance", type=float, help="weight of the trajectory prompt")
    sub.add_argument("--critic-guidance", type=float, help="weight of the critic's gradient; 0 is off")


def _guidance(options, settings):
    """The weights that the options give, or else the `evaluation` section of a config."""
    from llmdpd_jax.diffusion.guidance import Guidance

    given = {name: getattr(options, name) for name in _GUIDANCE}
    text, trajectory, critic = (settings[name] if weight is None else weight for name, weight in given.items())
    return Guidance(text, trajectory, critic or None)


def tasks(options) -> None:
    """list task families with their data, or the tasks of one; draw them"""
    from rich.console import Console
    from rich.table import Table

    from llmdpd_jax.data.logs import collected
    from llmdpd_jax.evaluation.results import check_target
    from llmdpd_jax.tasks.experts import load_expert
    from llmdpd_jax.tasks.family import SPLITS, family_names, get_family
    from llmdpd_jax.tasks.metaworld.clauses import CLAUSES
    from llmdpd_jax.tasks.metaworld.sets import KNOWN, PREFIX, find_set

    of_metaworld = options.family is not None and options.family.startswith(PREFIX)
    if options.render is not None:
        if options.family is None or of_metaworld:
            raise UserError("tasks: --render draws one family, none of Meta-World's; name it with --family")
        check_target(options.render)
    table = Table(box=None)
    if of_metaworld:
        chosen = find_set(options.family)
        for column in ("Meta-World's task", "split", "goals", "what is to be done"):
            table.add_column(column)
        for split, goals in zip(SPLITS, chosen.goals, strict=True):
            for scene in chosen.scenes(split):
                table.add_row(scene, split, str(goals), CLAUSES[scene].train[0])
    elif options.family is None:
        for column in ("family", "train", "test", "horizon", "parameters", "wordings", "held out"):
            table.add_column(column)
        for name in family_names():
            family = get_family(name)
            splits = [task.split for task in family.tasks()]
            held_out = sum(wording.held_out for wording in family.wordings)
            cells = (splits.count("train"), splits.count("test"), family.horizon, ", ".join(family.parameter_names))
            table.add_row(name, *map(str, cells), str(len(family.wordings) - held_out), str(held_out))
    else:
        family = get_family(options.family)
        returns = load_expert(family.expert)[1]["returns"] if family.expert else {}
        for column in ("task", "split", "parameters", *returns, "first description"):
            table.add_column(column)
        for task in family.tasks():
            parameters = ", ".join(f"{name}={value:g}" for name, value in task.parameters.items())
            of_policies = [f"{of_tasks[task.name]:.1f}" for of_tasks in returns.values()]
            description = family.descriptions(task.parameters, held_out=False)[0]
            table.add_row(task.name, task.split, parameters, *of_policies, description)
    Console().print(table)
    for name in [options.family] if options.family else family_names():
        for data, count in collected(name).items():
            print(f"data: {name}/{data}, {count} tasks")
    if options.family is None:
        print(f"Meta-World's sets (extra metaworld): {', '.join(KNOWN)}")
    if options.render is not None:
        from llmdpd_jax.evaluation.figures import all_tasks_picture, png
        from llmdpd_jax.evaluation.results import write_atomically
        from llmdpd_jax.evaluation.rollout import play

        write_atomically(options.render, png(all_tasks_picture(play(family))))
        print(f"drawn: {options.render}")


def collect(options) -> None:
    """log episodes of a task family into Minari data sets and a manifest"""
    from llmdpd_jax.tasks.metaworld.sets import PREFIX

    out = options.out or Path("data") / options.family
    given = options.family, options.quality, options.episodes, options.seed, out, options.overwrite
    only = {name: getattr(options, name) for name in ("horizon", "goals", "workers")}
    if options.family.startswith(PREFIX):
        from llmdpd_jax.data.metaworld import collect_metaworld

        done, config = collect_metaworld(*given, **only), "metaworld"
    else:
        from llmdpd_jax.data.collect import collect as run

        for name, value in only.items():
            if value is not None:
                raise UserError(f"collect: --{name} is for Meta-World's sets ({PREFIX}...), not for {options.family}")
        done, config = run(*given), options.family
    print(
        f"{done.manifest.path}: {len(done.manifest.tasks)} tasks x {options.episodes} episodes, mean return "
        f"{done.mean_return:.2f}, mean score {done.mean_score:.1f}{' (there already)' if done.reused else ''}"
    )
    print(
        f"next: llmdpd train --config=configs/{config}.py --config.data.manifest={done.manifest.path} --out=runs/NAME"
    )


def expert(options) -> None:
    """train the expert that logs a family's data, where learning is the way to one"""
    from llmdpd_jax.evaluation.results import check_target
    from llmdpd_jax.training.expert import train_expert

    out = options.out or Path("runs") / "experts" / f"{options.task or options.family}.safetensors"
    check_target(out)
    record = train_expert(options.family, options.steps, out, options.task, options.seed)
    for quality, returns in record["returns"].items():
        print(f"{quality}: mean return {sum(returns.values()) / len(returns):.1f} of {len(returns)} tasks")
    print(f"{out}: {record['steps']} steps in {record['seconds']} s")


def embed(options) -> None:
    """obtain the LLM; read descriptions with it, into the cache; show or clear the cache"""
    from llmdpd_jax.cli.embed import embed as run

    run(options)


def validation(options) -> None:
    """make a manifest in which held-out train tasks stand for the test tasks, to choose settings by"""
    from llmdpd_jax.tasks.manifest import FILE_NAME, load_manifest, save_manifest
    from llmdpd_jax.tasks.validation import validation_manifest

    manifest, target = load_manifest(options.manifest), options.out / FILE_NAME
    if target.exists() and target.samefile(manifest.path):
        raise UserError(f"validation: --out={options.out} holds the very manifest to divide; name another folder")
    divided = validation_manifest(manifest, options.tasks, options.descriptions, options.seed)
    saved = save_manifest(divided, target)
    held_out = [task.name for task in saved.tasks if task.split == "test"]
    print(f"{saved.path}: {len(saved.tasks) - len(held_out)} train tasks; held out: {', '.join(held_out)}")


def train(options) -> None:
    """train a policy on the train tasks of a manifest"""
    from llmdpd_jax.config import from_json, parse_config

    if options.resume is not None:
        if options.overrides or options.out or options.seeds is not None:
            raise UserError("train: --resume takes the run's own config and seeds; give it alone")
        files = [options.resume / "config.json"]
        if not files[0].is_file():  # a folder of several seeds
            files = list(options.resume.glob("seed-*/config.json"))
        if not files:
            raise UserError(f"{options.resume}: not a run, it has no config.json")
        configs = [from_json(file.read_text(), str(file)) for file in files]
        config, run, seeds = min(configs, key=lambda one: one.seed), options.resume, len(files)
    else:
        config = parse_config(options.overrides)
        if options.out is None:
            raise UserError("train: name the run folder with --out, for example --out=runs/first")
        run, seeds = options.out, 1 if options.seeds is None else options.seeds
    from llmdpd_jax.data.environments import has_environment
    from llmdpd_jax.parallel import is_leader
    from llmdpd_jax.tasks.manifest import load_manifest
    from llmdpd_jax.training.loop import train as run_training

    folders = run_training(config, run, options.devices, seeds)
    manifest = load_manifest(config.data.manifest)
    has_env = manifest.env is not None or all(has_environment(t) for t in manifest.tasks if t.split == "train")
    following = f"llmdpd evaluate {folders[0]}" if has_env else f'llmdpd_jax.load_policy("{folders[0]}")'
    if is_leader():
        print(f"{run}: trained to update {config.train.steps}; next: {following}")


def distill(options) -> None:
    """make a one-step student of a finished policy"""
    from llmdpd_jax.agents.diffusion_ql import STUDENT
    from llmdpd_jax.training.checkpoint import load
    from llmdpd_jax.training.loop import train as run_training

    config = load(options.run).config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "seed": options.seed,
                "agent.policy_improvement": "student",
                "evaluation.sampler": STUDENT,
                "train.steps": options.updates,
                "train.distill_from": str(options.run),
                "data.manifest": options.manifest or config.data.manifest,
                "agent.eta": config.agent.eta if options.eta is None else options.eta,
            }
        )
    run_training(config, options.out)
    print(f"{options.out}: a student of {options.run}; next: llmdpd evaluate {options.out}")


def evaluate(options) -> None:
    """score a policy on train and unseen tasks; write results.json and report.html"""
    from llmdpd_jax.evaluation.figures import ROLLOUTS_FILE, write_rollouts
    from llmdpd_jax.evaluation.results import RESULTS_FILE, check_target, write_results
    from llmdpd_jax.evaluation.rollout import evaluate as run
    from llmdpd_jax.parallel import failing_together, is_leader
    from llmdpd_jax.policy import load_policy
    from llmdpd_jax.tasks.manifest import load_manifest
    from llmdpd_jax.training.checkpoint import find

    with failing_together("loading the policy"):
        policy = load_policy(options.run)
        out = options.out or find(options.run)[0]
        check_target(out / RESULTS_FILE)
        manifest = load_manifest(options.manifest or policy.config.data.manifest)
    results, rollouts = run(
        policy,
        manifest,
        episodes=options.episodes,
        sampler=options.sampler,
        steps=options.steps,
        guidance=_guidance(options, policy.config.evaluation),
        best_of=options.best_of,
        temperature=options.temperature,
        execute=options.execute,
        backend=options.backend,
        variant=options.variant,
        seed=options.seed,
        workers=options.workers,
        devices=options.devices,
        test_only=options.test_only,
    )
    if not is_leader():
        return
    write_results(out / RESULTS_FILE, results)
    if rollouts is None:
        (out / ROLLOUTS_FILE).unlink(missing_ok=True)  # of an earlier evaluation in another environment
    else:
        write_rollouts(out / ROLLOUTS_FILE, rollouts)
    _show(out, results)


def sweep(options) -> None:
    """score runs x samplers x steps x guidance weights, a compiled call for each run; write results.json, sweep.png"""
    from llmdpd_jax.evaluation.figures import png, sweep_picture
    from llmdpd_jax.evaluation.results import write_atomically
    from llmdpd_jax.evaluation.sweep import sweep_runs
    from llmdpd_jax.parallel import is_leader

    results = sweep_runs(
        options.runs,
        options.out,
        options.manifest,
        samplers=options.samplers,
        steps=options.steps,
        text_guidance=options.text_guidance,
        trajectory_guidance=options.trajectory_guidance,
        episodes=options.episodes,
        seed=options.seed,
        devices=options.devices,
    )
    if is_leader():
        write_atomically(options.out / "sweep.png", png(sweep_picture(results.rows)))
        _show(options.out, results)
        print(f"figure:  {options.out / 'sweep.png'}")


def export(options) -> None:
    """write a policy as programs that need JAX alone, or its weights"""
    from llmdpd_jax.export.folder import PLATFORMS, export_policy
    from llmdpd_jax.export.weights import check_target, write_weights
    from llmdpd_jax.policy import load_policy
    from llmdpd_jax.training.checkpoint import load

    if options.weights_only:
        programs = ("platforms", "text", "trajectory", "sampler", "steps", "best_of", "temperature", *_GUIDANCE)
        for name in programs:
            if getattr(options, name) is not None:
                raise UserError(f"export: --weights-only writes no program; leave out --{name.replace('_', '-')}")
        check_target(options.out)
        print(f"{options.out}: {write_weights(options.out, load(options.run)) / 1e6:.1f} MB")
        return
    policy = load_policy(options.run)
    about = export_policy(
        policy,
        options.out,
        platforms=options.platforms or PLATFORMS,
        texts=options.text,
        trajectories=options.trajectory,
        sampler=options.sampler,
        steps=options.steps,
        best_of=options.best_of,
        temperature=options.temperature,
        guidance=_guidance(options, policy.config.evaluation),
    )
    for name, program in about["programs"].items():
        print(f"{options.out / name}.exported: {', '.join(program['arguments'])}; for {', '.join(about['platforms'])}")
    if about["contexts"] is None:
        text = policy.config.text
        reading = f"llmdpd embed --file=LINES --source={text.source} --layer={text.layer} --out=prompts.safetensors"
        print(f"text prompts for it: {reading}")
    print(f"next: python {options.out / 'load.py'}")


def report(options) -> None:
    """print the table and write report.html of one run, or of several merged"""
    from llmdpd_jax.evaluation.results import RESULTS_FILE, load_results, merge_results, write_results

    results = [load_results(run) for run in options.runs]
    if len(results) > 1 and options.out is None:
        raise UserError("report: name a folder for the merged results with --out")
    out = options.out or options.runs[0]
    merged = merge_results(results) if len(results) > 1 else results[0]
    if options.out is not None:
        write_results(out / RESULTS_FILE, merged)
    _show(out, merged)


def _show(out: Path, results) -> None:
    """The table on the terminal, and the page."""
    from rich.console import Console

    from llmdpd_jax.evaluation.aggregates import score_table
    from llmdpd_jax.evaluation.report import write_report

    Console().print(score_table(results))
    print(f"results: {out / 'results.json'}\npage:    {write_report(out)}")


def bench(options) -> None:
    """measure speed and memory beside a reference, on this machine"""
    from rich.console import Console

    from llmdpd_jax.bench.registry import Settings, run_benchmark
    from llmdpd_jax.bench.rows import row_table, write_rows
    from llmdpd_jax.evaluation.results import check_target

    if options.json is not None:
        check_target(options.json)
    done = run_benchmark(options.name, Settings(options.threads, options.repeats, options.source, options.family))
    Console().print(row_table(done.rows))
    for note in done.notes:
        print(note)
    if options.json is not None:
        write_rows(options.json, options.name, done.rows)
        print(f"rows: {options.json}")


def doctor(options) -> int:
    """print what is installed, seen and found, and how to mend what is not"""
    from llmdpd_jax.cli.doctor import doctor as run
    from llmdpd_jax.models.llm.weights import weights_path, weights_sha256

    return run(weights_path(), weights_sha256())
