"""The point_robot results of the README: the method over seeds and its one-step students, beside the true goal, no
prompt and poorer data.

    python experiments/point_robot/run.py --out=runs/point_robot --seeds 0 1 2 --ablation-seeds 0 --jobs=2

Collects the data if they are not there, trains and evaluates every variant, merges all rows into
`experiments/point_robot/results.json`, draws `docs/trajectories.png` and prints the README's table. Finished runs are
reused, so it can be interrupted. Expected: about eight minutes per run on one CPU core, `--jobs` of them side by side;
scores as in the README. `text_ablation.py` says what each part of reading a text is worth.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from llmdpd_jax.evaluation.aggregates import table_lines
from llmdpd_jax.evaluation.figures import ROLLOUTS_FILE, all_tasks_picture, load_rollouts, png
from llmdpd_jax.evaluation.results import RESULTS_FILE, Results, load_results, merge_results, write_results
from llmdpd_jax.tasks.manifest import load_manifest, save_manifest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# Overrides of configs/point_robot.py. "" is the method itself.
VARIANTS = {
    "": [],
    "true goal": ["--config.model.use_llm=False"],  # the exact parameters, always in the same words: see `state_goals`
    "no prompt": ["--config.agent.text_dropout=1.0", "--config.agent.trajectory_dropout=1.0"],
}
SEEDED = ("", "true goal")  # variants that are run with every seed of the method
MEDIUM = "medium data"  # the method itself on data whose own mean score is far below 50


def llmdpd(*arguments: str) -> None:
    """Runs a `llmdpd` command of this checkout; its failure ends the script."""
    print("$ llmdpd", " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "llmdpd_jax", *arguments], check=True, cwd=ROOT)


def collect(quality: str, family: str = "point_robot") -> str:
    """Logs the data, unless they are there; returns their folder."""
    out = f"data/{family}_{quality}"
    llmdpd("collect", f"--family={family}", f"--quality={quality}", "--episodes=100", f"--out={out}")
    return out


def state_goals(data: str) -> str:
    """A manifest of the same data whose one description of a task is its exact goal; returns its folder."""
    manifest = load_manifest(ROOT / data)
    tasks = tuple(
        dataclasses.replace(
            task,
            descriptions=("; ".join(f"{name} = {value!r}" for name, value in task.parameters.items()),),
            held_out_descriptions=(),
        )
        for task in manifest.tasks
    )
    save_manifest(dataclasses.replace(manifest, tasks=tasks), ROOT / f"{data}_true_goal" / "tasks.json")
    return f"{data}_true_goal"


def run(variant: str, seed: int, quality: str, out: Path) -> Path:
    """Trains and evaluates one variant; returns its run folder."""
    data = f"data/point_robot_{quality}"
    if variant == "true goal":
        data = state_goals(data)
    return train_and_evaluate(variant, seed, data, VARIANTS.get(variant, []), out)


def train_and_evaluate(
    variant: str, seed: int, data: str, overrides: list[str], out: Path, config: str = "configs/point_robot.py"
) -> Path:
    """Trains with overrides of the config, and evaluates under the variant's name; returns the run folder."""
    folder = out / f"{(variant or 'method').replace(' + ', '_').replace(' ', '_')}-{seed}"
    overrides = [f"--config.data.manifest={data}/tasks.json", f"--config.seed={seed}", *overrides]
    llmdpd("train", f"--config={config}", *overrides, f"--out={folder}")
    if not (ROOT / folder / RESULTS_FILE).exists():
        llmdpd("evaluate", str(folder), f"--variant={variant}")
    return folder


def distill(seed: int, out: Path, options: Sequence[str] = ()) -> Path:
    """Distils the method's policy into a student that acts in one network call; returns its run folder.

    options: of `llmdpd distill`.
    """
    folder = out / f"student-{seed}"
    llmdpd("distill", str(out / f"method-{seed}"), f"--out={folder}", f"--seed={seed}", *options)
    if not (ROOT / folder / RESULTS_FILE).exists():
        llmdpd("evaluate", str(folder), "--variant=student")
    return folder


def side_by_side(jobs: int, run: Callable[..., Path], plan: list[tuple]) -> tuple[list[Path], Results]:
    """Runs every entry of the plan, `jobs` at a time; returns the run folders and all their rows."""
    if jobs > 1:
        # One thread of matrix products per run: they then share the cores without waiting for each other.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    with ThreadPoolExecutor(jobs) as pool:
        folders = list(pool.map(lambda one: run(*one), plan))
    return folders, merge_results([load_results(ROOT / folder) for folder in folders])


def markdown(results) -> str:
    """The table of the README: mean score with its interval, test tasks before train tasks."""
    lines = ["| variant | prompt | wording | unseen tasks | train tasks |", "|---|---|---|---|---|"]
    for line in table_lines(results.rows):
        cells = [
            "–" if entry is None else f"{entry.mean:.1f} [{entry.mean_interval[0]:.1f}, {entry.mean_interval[1]:.1f}]"
            for entry in (line.test, line.train)
        ]
        wording = line.setting.wording.replace("_", "-") if "text" in line.setting.prompt else ""
        lines.append(
            f"| {line.setting.variant or 'method'} | {line.setting.prompt} | {wording} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder of the runs, from the root of the checkout", default=Path("runs/point_robot")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the method and of the true goal")
    parser.add_argument("--ablation-seeds", type=int, nargs="*", default=[0, 1, 2], help="of every other variant")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    options = parser.parse_args()
    plan = [(variant, seed, "mixed") for variant in SEEDED for seed in options.seeds]
    plan += [(MEDIUM, seed, "medium") for seed in options.ablation_seeds]
    plan += [
        (variant, seed, "mixed") for variant in VARIANTS if variant not in SEEDED for seed in options.ablation_seeds
    ]
    for quality in dict.fromkeys(quality for _, _, quality in plan):
        collect(quality)
    folders, results = side_by_side(options.jobs, partial(run, out=options.out), plan)
    _, students = side_by_side(options.jobs, partial(distill, out=options.out), [(seed,) for seed in options.seeds])
    results = merge_results([results, students])
    write_results(HERE / RESULTS_FILE, results)
    picture = all_tasks_picture(load_rollouts(ROOT / folders[0] / ROLLOUTS_FILE))
    (ROOT / "docs" / "trajectories.png").write_bytes(png(picture))
    print(markdown(results))


if __name__ == "__main__":
    main()
