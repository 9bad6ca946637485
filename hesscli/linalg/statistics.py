"""Means of independent draws with intervals that cover."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
_NORMAL = float(ndtri(0.5 + LEVEL / 2))
_WIDEST = 100.0  # e-folds of an interval on the log scale: two draws that differ much would overflow
_RATIO_INFLATION = 1.2  # by simulation: see ratio_estimate


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `count` independent draws."""

    value: float
    stderr: float | None
    """One standard error; None for a single draw, which cannot know it."""
    ci: tuple[float, float] | None
    count: int

    def shifted(self, by: float) -> "Estimate":
        """The estimate plus a number that is known."""
        ci = self.ci and (self.ci[0] + by, self.ci[1] + by)
        return Estimate(self.value + by, self.stderr, ci, self.count)


def mean_estimate(draws: np.ndarray) -> Estimate:
    """The mean of draws (count,) with Student's t interval at 95 %.

    The percentile bootstrap covers only 72 to 92 % for 3 to 20 draws; t covers 90 to 95 %.
    """
    draws = np.asarray(draws, dtype=np.float64)
    value, count = float(draws.mean()), int(draws.size)
    if count < 2:
        return Estimate(value, None, None, count)
    stderr = float(draws.std(ddof=1) / np.sqrt(count))
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * stderr
    return Estimate(value, stderr, (value - half, value + half), count)


def trace_estimate(
    known: float | np.ndarray,
    forms: np.ndarray,
    squares: np.ndarray,
    *,
    dimension: float,
    share: float,
    inflation: float,
) -> Estimate:
    """`known` plus the trace of B from forms g.Bg and squares ||Bg||^2, (count,) each, with E gg^T = I.

    The half-width is the larger of Student's t from the draws' own spread and 1.96 standard errors from the bound
    Var g.Bg <= 2 (||B||_F^2 - tr(B)^2 / dimension), which the squares estimate. For the diagonal block over a
    `share` of the entries, with forms and squares of its rows alone, 1 + share stands for 2: what its rows hold
    is outside it as to the rest. Where few eigenvalues dominate t
    alone covers 90 to 93 %, because the draws that miss them are small and agree; the larger of the two 94 to 98 %,
    hardly wider. For a matrix that is all diagonal, where the forms of signs do not spread at all, the bound is idle.
    `known` is (count,) where it differs by draw, and `inflation` widens both for draws that depend on each other.
    """
    draws = mean_estimate(known + np.asarray(forms))
    if draws.stderr is None or draws.ci is None:
        return draws
    bound = (1 + share) * max(0.0, float(np.mean(squares)) - float(np.mean(forms)) ** 2 / dimension)
    model = float(np.sqrt(bound / draws.count))
    half = inflation * max((draws.ci[1] - draws.ci[0]) / 2, _NORMAL * model)
    return Estimate(
        draws.value, inflation * max(draws.stderr, model), (draws.value - half, draws.value + half), draws.count
    )


def positive_estimate(known: float | np.ndarray, draws: np.ndarray, *, inflation: float) -> Estimate:
    """`known` plus the mean of positive draws (count,) whose tail is long, with a t interval on the log scale.

    The relative variance of a draw is the larger of the sample's own and v + v^2 / 2, with v the variance of the
    logarithms (Cox's interval for a log-normal mean; Zhou and Gao 1997). For squared lengths t on the plain scale
    covers 85 to 92 %, this 93 to 98 %. `known` and `inflation` as for `trace_estimate`.
    """
    draws = np.asarray(draws, dtype=np.float64)
    plain = mean_estimate(known + draws)
    if plain.stderr is None or plain.ci is None:
        return plain
    least = float(np.min(known))
    if (draws <= 0).any():
        return Estimate(plain.value, plain.stderr, (max(least, plain.ci[0]), plain.ci[1]), plain.count)
    mean, count = float(draws.mean()), int(draws.size)
    v = float(np.log(draws).var(ddof=1))
    relative = inflation * float(np.sqrt(max(v + v * v / 2, draws.var(ddof=1) / mean**2) / count))
    reach = min(_WIDEST, float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * relative)
    exact = plain.value - mean
    low, high = exact + mean * float(np.exp(-reach)), exact + mean * float(np.exp(reach))
    if np.ndim(known):  # the exact part spreads as well, and only the sum of both is told by the draws
        half = inflation * (plain.ci[1] - plain.ci[0]) / 2
        low, high = min(low, plain.value - half), max(high, plain.value + half)
    return Estimate(plain.value, max(mean * relative, plain.stderr), (max(0.0, low), high), count)


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
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * stderr
    return Estimate(value, stderr, (max(0.0, value - half), value + half), count)


def ratio_estimate(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """sum(numerators) / sum(denominators) over paired draws, with the jackknife's t interval on the log scale.

    Where long-tailed squares are divided it covers 90 to 94 % of the time, the delta method 88 to 92 %; widened by a
    fifth, 93 to 97 %. A ratio that is zero or below has the plain jackknife's interval.
    """
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    count = int(denominators.size)
    if not denominators.any():
        return Estimate(float("nan"), None, None, count)
    ratio = float(numerators.sum() / denominators.sum())
    rest = denominators.sum() - denominators
    if count < 2 or not rest.all():
        return Estimate(ratio, None, None, count)
    without = (numerators.sum() - numerators) / rest
    quantile = _RATIO_INFLATION * float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    stderr = float(np.sqrt((count - 1) * without.var()))
    if ratio <= 0 or (without <= 0).any():
        return Estimate(ratio, stderr, (ratio - quantile * stderr, ratio + quantile * stderr), count)
    reach = min(_WIDEST, quantile * float(np.sqrt((count - 1) * np.log(without).var())))
    return Estimate(ratio, stderr, (ratio * float(np.exp(-reach)), ratio * float(np.exp(reach))), count)
