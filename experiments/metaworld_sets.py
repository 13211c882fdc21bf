"""Results on Meta-World: a policy for each set of tasks, scored on unseen goals (ML1) or unseen tasks.

    python experiments/metaworld_sets.py metaworld-ml1-push-v3 metaworld-ml1-reach-v3

Needs the extra `metaworld`. Collects the data if they are not there, trains and evaluates, writes
`experiments/metaworld_sets/<set>.json` and prints a table with success rates, those of the scripted policies too.
Finished runs are reused, so it can be interrupted. About twenty minutes per set on one CPU core, half of it for the
data.
"""

import argparse
from pathlib import Path

import numpy as np
from point_robot.run import ROOT, llmdpd

from llmdpd_jax.evaluation.aggregates import table_lines
from llmdpd_jax.evaluation.results import RESULTS_FILE, load_results, merge_results, write_results
from llmdpd_jax.tasks.manifest import load_manifest
from llmdpd_jax.tasks.metaworld.behaviour import make_policy
from llmdpd_jax.tasks.metaworld.environment import MetaWorldTask

# Episodes of each task, their steps, and updates of the training; those of ML1 are the default.
SIZES = {
    "metaworld-ml1-push-v3": (50, 150, 12_000),
    "metaworld-ml1-reach-v3": (30, 150, 24_000),
    "metaworld-ml10": (20, 150, 12_000),
    "metaworld-18": (60, 200, 12_000),
}
ML1_SIZES = 30, 150, 12_000


def run(name: str, seed: int) -> Path:
    """Collects, trains and evaluates a set; returns its run folder."""
    episodes, horizon, updates = SIZES.get(name, ML1_SIZES)
    data, folder = f"data/{name}", Path("runs") / name / f"method-{seed}"
    sizes = f"--episodes={episodes}", f"--horizon={horizon}"
    llmdpd("collect", f"--family={name}", "--quality=mixed", *sizes, f"--out={data}")
    overrides = f"--config.data.manifest={data}/tasks.json", f"--config.seed={seed}"
    updates = f"--config.train.steps={updates}"
    llmdpd("train", "--config=configs/metaworld.py", *overrides, updates, f"--out={folder}")
    if not (ROOT / folder / RESULTS_FILE).exists():
        llmdpd("evaluate", str(folder), "--episodes=4", "--test-only")
    return folder


def scripted_success(name: str) -> float:
    """The share of a set's unseen tasks that the scripted policy, which sees the goal, solves in as many steps."""
    manifest = load_manifest(ROOT / "data" / name)
    solved = []
    for task in (task for task in manifest.tasks if task.split == "test"):
        env = MetaWorldTask(task.gym_env["scene"], task.gym_env["vector"])
        policy = make_policy(task.gym_env["scene"], deviation=0.0, seed=0)
        env.reset()
        solved.append(any(env.step(policy(env.seen_by_expert))[4]["success"] for _ in range(manifest.horizon)))
        env.close()
    return float(np.mean(solved))


def markdown(results) -> str:
    """Mean score with its interval and success rate on unseen tasks."""
    lines = ["| told | wording | unseen | success |", "|---|---|---|---|"]
    for line in table_lines(results.rows):
        low, high = line.test.mean_interval
        wording = line.setting.wording.replace("_", "-") if "text" in line.setting.prompt else ""
        score = f"{line.test.mean:.1f} [{low:.1f}, {high:.1f}]"
        lines.append(f"| {line.setting.prompt} | {wording} | {score} | {100 * line.test.success:.0f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="as `llmdpd collect --family` names them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    for name in options.sets:
        results = merge_results([load_results(ROOT / run(name, seed)) for seed in options.seeds])
        target = ROOT / "experiments" / "metaworld_sets" / f"{name}.json"
        target.parent.mkdir(exist_ok=True)
        write_results(target, results)
        print(f"{name}\n{markdown(results)}")
        print(f"The scripted policy solves {100 * scripted_success(name):.0f} %.", flush=True)


if __name__ == "__main__":
    main()
