"""Mean and standard deviation of values that come piece by piece."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """What is known of the values so far."""

    count: int
    mean: np.ndarray  # [...] float64
    squares: np.ndarray  # [...] float64, sum of squared deviations from the mean

    @property
    def std(self) -> np.ndarray:
        """The standard deviation [...], as `numpy.std` gives it."""
        return np.sqrt(self.squares / self.count)


def measure(values: np.ndarray) -> Moments:
    """The moments of values [N, ...], N at least 1."""
    values = values.astype(np.float64)
    mean = values.mean(axis=0)
    return Moments(len(values), mean, ((values - mean) ** 2).sum(axis=0))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of values together (Chan et al. 1979), exact where sums of squares would cancel."""
    count, difference = a.count + b.count, b.mean - a.mean
    mean = a.mean + difference * (b.count / count)
    return Moments(count, mean, a.squares + b.squares + difference**2 * (a.count * b.count / count))
