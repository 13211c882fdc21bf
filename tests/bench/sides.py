"""Sides for the tests of the workers."""

import os
import time

import numpy as np

from llmdpd_jax.errors import UserError


class Sleeper:
    """Works by sleeping, and says what it did last."""

    def __init__(self, seconds: float, log: str):
        if seconds < 0:
            raise UserError(f"cannot sleep for {seconds}")
        self.seconds, self.log = seconds, log
        print("what a library prints is no answer")

    def facts(self) -> dict:
        return {"cpus": sorted(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"]}

    def run(self) -> None:
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{self.seconds} ")
        if self.seconds > 5:
            os._exit(1)

    def result(self, layer: int | None) -> np.ndarray:
        return np.full((2, 3), self.seconds if layer is None else layer)

    def matmul(self) -> float:
        return 1e9 * self.seconds
