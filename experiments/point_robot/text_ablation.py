"""What each way of reading the text prompt is worth in score, on unseen tasks of point_robot.

    python experiments/point_robot/text_ablation.py --seeds 0 --jobs=2

The same data and evaluation as `run.py`, at a setting small enough for an LLM inside every update on a CPU: the first
two blocks of the LLM, which reads a description once, and 4,000 updates. Scores are therefore lower than those of the
full setting; what counts is how the rows differ. Writes text_ablation.json beside this file and prints the table.
Finished runs are reused. With LoRA or soft prompts an update takes many times as long.
"""

import argparse
from functools import partial
from pathlib import Path

from run import HERE, collect, markdown, side_by_side, train_and_evaluate

from llmdpd_jax.evaluation.results import write_results

SMALL = ["--config.text.layer=2", "--config.text.repeat=False", "--config.train.steps=4000"]
# Without the numeric channel the LLM has to read the digits itself.
DIGITS = ["--config.text.hide_numbers=False", "--config.model.use_numbers=False"]
READINGS = {
    "mean-pooled LLM states": [*DIGITS, "--config.model.text_pooling=mean"],
    "token states": DIGITS,
    "numbers": ["--config.model.use_llm=False"],
    "random-initialised LLM + numbers": ["--config.text.random_init=True"],
    "token states + numbers": [],
    "token states + numbers + LoRA": ["--config.text.lora_rank=8"],
    "token states + numbers + soft prompts": ["--config.text.soft_tokens=8"],
}


def run(reading: str, seed: int, out: Path) -> Path:
    """Trains and evaluates with one way of reading; returns its run folder."""
    return train_and_evaluate(reading, seed, "data/point_robot_mixed", [*SMALL, *READINGS[reading]], out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder of the runs, from the root of the checkout", default=Path("runs/text_ablation")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    options = parser.parse_args()
    collect("mixed")
    plan = [(reading, seed) for reading in READINGS for seed in options.seeds]
    _, results = side_by_side(options.jobs, partial(run, out=options.out), plan)
    write_results(HERE / "text_ablation.json", results)
    print(markdown(results))


if __name__ == "__main__":
    main()
