"""The benchmarks by name."""

from collections.abc import Callable
from dataclasses import dataclass

from llmdpd_jax.bench import cost, diffusion, env, seeds, stream, text
from llmdpd_jax.bench.machine import choose_cpus
from llmdpd_jax.bench.rows import Report
from llmdpd_jax.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What a benchmark is told."""

    threads: int | None = None  # that each side may use; None: all CPUs of this process
    repeats: int = 5  # turns of each side, whose median counts
    source: str = "smollm2"  # the LLM, for benchmarks that read with one
    family: str = "cheetah_vel"  # the task family, for benchmarks that act in one

    def __post_init__(self):
        if self.repeats < 1:
            raise UserError(f"repeats: expected a whole number from 1, found {self.repeats}")


BENCHMARKS: dict[str, Callable[[Settings], Report]] = {
    "train": lambda settings: diffusion.run_train(choose_cpus(settings.threads), settings.repeats),
    "sample": lambda settings: diffusion.run_sample(choose_cpus(settings.threads), settings.repeats),
    "step-cost": lambda settings: cost.run_step_cost(choose_cpus(settings.threads)),
    "env": lambda settings: env.run_env(settings.family, choose_cpus(settings.threads), settings.repeats),
    "eval": lambda settings: env.run_eval(settings.family, choose_cpus(settings.threads), settings.repeats),
    "seeds": lambda settings: seeds.run(choose_cpus(settings.threads), settings.repeats),
    "stream": lambda settings: stream.run(choose_cpus(settings.threads), settings.repeats),
    "text": lambda settings: text.run(settings.source, choose_cpus(settings.threads), settings.repeats),
}


def run_benchmark(name: str, settings: Settings) -> Report:
    """Runs a benchmark. Raises UserError if there is none of this name, and as the benchmark does."""
    if name not in BENCHMARKS:
        raise UserError(f"bench: there is no {name!r}; choose {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](settings)
