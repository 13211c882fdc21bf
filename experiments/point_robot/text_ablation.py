"""What each way of reading the text prompt is worth in score, on unseen tasks of point_robot.

    python experiments/point_robot/text_ablation.py --seeds 0 --jobs=2

The same data and evaluation as `run.py`, at a setting small enough for an LLM inside every update on a CPU: the first
two blocks of the LLM, 8 task groups per batch, 4,000 updates. Scores are therefore lower than those of the full
setting; what counts is how the rows differ. Writes text_ablation.json beside this file and prints the table. Finished
runs are reused. Expected: three minutes per run on one CPU core, half an hour with LoRA or soft prompts.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run import HERE, ROOT, collect, llmdpd, markdown

from llmdpd_jax.evaluation.results import RESULTS_FILE, load_results, merge_results, write_results

SMALL = ["--config.text.layer=2", "--config.data.groups=8", "--config.train.steps=4000"]
# Without the numeric channel the LLM has to read the digits itself.
DIGITS = ["--config.text.hide_numbers=False", "--config.model.use_numbers=False"]
READINGS = {
    "mean-pooled LLM states": [*DIGITS, "--config.model.text_pooling=mean"],
    "token states": DIGITS,
    "token states + numbers": [],
    "token states + numbers + LoRA": ["--config.text.lora_rank=8"],
    "token states + numbers + soft prompts": ["--config.text.soft_tokens=8"],
}


def run(reading: str, seed: int, out: Path) -> Path:
    """Trains and evaluates with one way of reading; returns its run folder."""
    folder = out / f"{reading.replace(' + ', '_').replace(' ', '_')}-{seed}"
    overrides = ["--config.data.manifest=data/point_robot_mixed/tasks.json", f"--config.seed={seed}"]
    llmdpd("train", "--config=configs/point_robot.py", *overrides, *SMALL, *READINGS[reading], f"--out={folder}")
    if not (ROOT / folder / RESULTS_FILE).exists():
        llmdpd("evaluate", str(folder), f"--variant={reading}")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder of the runs, from the root of the checkout", default=Path("runs/text_ablation")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    options = parser.parse_args()
    if options.jobs > 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    collect("mixed")
    with ThreadPoolExecutor(options.jobs) as pool:
        plan = [(reading, seed) for reading in READINGS for seed in options.seeds]
        folders = list(pool.map(lambda one: run(*one, options.out), plan))
    results = merge_results([load_results(ROOT / folder) for folder in folders])
    write_results(HERE / "text_ablation.json", results)
    print(markdown(results))


if __name__ == "__main__":
    main()
