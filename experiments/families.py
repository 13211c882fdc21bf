"""The results of a task family: the method over seeds, beside the same networks without prompts.

    python experiments/families.py cheetah_vel --seeds 0 1 2 --jobs=2
    python experiments/families.py cheetah_vel --students  # and one-step students of the method's policies

Collects the data if they are not there, trains and evaluates, merges all rows into `experiments/<family>.json`, draws
`docs/<family>.png` and prints a table. Finished runs are reused, so it can be interrupted. The README says what to
expect. `point_robot` has scripts of its own, with ablations.
"""

import argparse
from functools import partial
from pathlib import Path

from point_robot.run import ROOT, collect, distill, markdown, side_by_side, train_and_evaluate

from llmdpd_jax.evaluation.figures import ROLLOUTS_FILE, all_tasks_picture, load_rollouts, png
from llmdpd_jax.evaluation.results import merge_results, write_results

METHOD, NO_PROMPT = "", "no prompt"
# What the critics think of a robot's torques has said its say in the teacher; the student has to be like it.
STUDENT = ["--eta=0", "--updates=12000"]
VARIANTS = {METHOD: [], NO_PROMPT: ["--config.agent.text_dropout=1.0", "--config.agent.trajectory_dropout=1.0"]}


def run(variant: str, seed: int, family: str, data: str, out: Path) -> Path:
    """Trains and evaluates one variant; returns its run folder."""
    return train_and_evaluate(variant, seed, data, VARIANTS[variant], out, f"configs/{family}.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", help="with a file of its name in configs/")
    parser.add_argument("--quality", default="mixed", help="of the data (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the runs, from the root of the checkout (default: runs/)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation-seeds", type=int, nargs="*", default=[0], help="of the networks without prompts")
    parser.add_argument("--students", action="store_true", help="distil each policy of the method, too")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    options = parser.parse_args()
    data = collect(options.quality, options.family)
    out = options.out or Path("runs") / options.family
    plan = [(METHOD, seed) for seed in options.seeds] + [(NO_PROMPT, seed) for seed in options.ablation_seeds]
    folders, results = side_by_side(options.jobs, partial(run, family=options.family, data=data, out=out), plan)
    if options.students:
        student = partial(distill, out=out, options=STUDENT)
        _, students = side_by_side(options.jobs, student, [(seed,) for seed in options.seeds])
        results = merge_results([results, students])
    write_results(ROOT / "experiments" / f"{options.family}.json", results)
    picture = all_tasks_picture(load_rollouts(ROOT / folders[0] / ROLLOUTS_FILE))
    (ROOT / "docs" / f"{options.family}.png").write_bytes(png(picture))
    print(markdown(results))


if __name__ == "__main__":
    main()
