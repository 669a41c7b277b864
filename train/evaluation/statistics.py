"""Percentile bootstrap over pictures: intervals of means, and of differences paired by picture."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval; the bounds are nan for fewer than two pictures."""

    mean: float
    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@lru_cache(maxsize=4)
def _counts(pictures: int) -> np.ndarray:
    """How often each resample draws each picture, [RESAMPLES, pictures]: the same for all methods and metrics."""
    return np.random.default_rng(SEED).multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)


def bootstrap(values: np.ndarray) -> Interval:
    """Bootstrap the mean of one score per picture (Efron's percentile interval, 10,000 resamples, fixed seed).

    Of differences between two methods on the same pictures, this is the paired bootstrap.

    Args:
        values: one per picture, finite.

    Returns:
        Mean and interval; nan where there is nothing to compute it from.
    """
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    means = _counts(len(values)) @ np.asarray(values, dtype=np.float64) / len(values)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))
