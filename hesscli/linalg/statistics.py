"""Means of independent draws with intervals that cover."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `count` independent draws."""

    value: float
    stderr: float | None
    """One standard error; None for a single draw, which cannot know it."""
    ci: tuple[float, float] | None
    count: int


def mean_estimate(draws: np.ndarray) -> Estimate:
    """The mean of draws (count,) with Student's t interval at 95 %.

    The percentile bootstrap covers only 72 to 92 % for 3 to 20 draws; t covers 90 to 95 %.
    """
    draws = np.asarray(draws, dtype=np.float64)
    value, count = float(draws.mean()), int(draws.size)
    if count < 2:
        return Estimate(value, None, None, count)
    stderr = float(draws.std(ddof=1) / np.sqrt(count))
    half = float(student.ppf(0.5 + LEVEL / 2, count - 1)) * stderr
    return Estimate(value, stderr, (value - half, value + half), count)


def spread_estimate(draws: np.ndarray) -> Estimate:
    """The standard deviation of draws (samples, places), with the jackknife's t interval over samples.

    Places are not draws: a formula for so many independent numbers would give too narrow an interval.
    """
    draws = np.asarray(draws, dtype=np.float64)
    value, count = float(draws.std(ddof=1)), draws.shape[0]
    if count < 2:
        return Estimate(value, None, None, count)
    without = np.array([np.delete(draws, i, axis=0).std(ddof=1) for i in range(count)])
    stderr = float(np.sqrt((count - 1) * without.var()))
    half = float(student.ppf(0.5 + LEVEL / 2, count - 1)) * stderr
    return Estimate(value, stderr, (max(0.0, value - half), value + half), count)


def ratio_estimate(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """sum(numerators) / sum(denominators) over paired draws, with the delta method's t interval."""
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    if not denominators.any():
        return Estimate(float("nan"), None, None, int(denominators.size))
    ratio = float(numerators.sum() / denominators.sum())
    spread = mean_estimate((numerators - ratio * denominators) / denominators.mean())
    if spread.stderr is None or spread.ci is None:
        return Estimate(ratio, None, None, spread.count)
    half = (spread.ci[1] - spread.ci[0]) / 2
    return Estimate(ratio, spread.stderr, (ratio - half, ratio + half), spread.count)
