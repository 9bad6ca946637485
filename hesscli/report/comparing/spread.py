"""The interval of a figure, taken apart into what was sampled and what was bounded."""

from dataclasses import dataclass
from math import inf

from hesscli.report.interval import arms
from hesscli.report.schema import Metric

# Of the standard normal distribution, two sides: what no Student quantile is below.
_NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a figure's interval."""

    standard_error: float
    """Of the sampling error; 0 where nothing was sampled."""
    bound: float
    """How far the algorithm and the arithmetic may have moved the figure: not sampled, so it never averages out."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure with what is known of its error below and above."""

    value: float
    below: Arm
    above: Arm
    freedom: float
    """Degrees of freedom of the sampling error."""


def spread(metric: Metric, *, other_data: bool = False) -> Spread | str:
    """Return the metric's error taken apart, or the reason why nothing can be told from it.

    The interval of a sampled figure is Student's, on one scale or another, widened by its precision: the standard
    error of each side is that side over Student's quantile, so that a skewed interval stays skewed. The interval of
    any other figure is a bound. With `other_data` the rows count as a sample too: that is for another slice.
    """
    found = arms(metric)
    if metric.value is None:
        return metric.reason or "no value"
    if found is None:
        return metric.reason or "it has no interval"
    errors, freedom = metric.errors, _freedom(metric.n)
    bound = (errors.precision or 0.0) + (errors.numeric or 0.0)
    sides = []
    for arm in found:
        fixed = arm if metric.stderr is None else min(arm, bound)
        sides.append((arm - fixed, fixed))
    longest = max(sampled for sampled, _ in sides)
    student = quantile(freedom, 1.0 - metric.level)
    # Where the half-width is not Student's but a normal one from a bound on the variance, it is shorter.
    used = min(student, max(_NORMAL, longest / metric.stderr)) if metric.stderr else student
    below, above = (Arm(sampled / used, fixed) for sampled, fixed in sides)
    if other_data and not is_over_rows(metric):
        if errors.data is None:
            return "the error that the data makes was not measured"
        below, above = (Arm((a.standard_error**2 + errors.data**2) ** 0.5, a.bound) for a in (below, above))
        freedom = min(freedom, max(1, metric.n.get("batches", 2) - 1))
    return Spread(metric.value, below, above, freedom)


def is_over_rows(metric: Metric) -> bool:
    """Whether the rows are the sample, as of a spread over groups of them: two such figures of one slice share it."""
    return metric.errors.probe is None and metric.errors.data is not None and metric.stderr is not None


def quantile(freedom: float, alpha: float) -> float:
    """Return Student's two-sided quantile: a draw lies beyond it, on either side, with the chance `alpha`."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(1 - alpha / 2) if freedom == inf else stdtrit(freedom, 1 - alpha / 2))


def _freedom(n: dict[str, int]) -> float:
    """Blocks are not draws, and rows only where nothing else is; probes come first of all."""
    draws = [count for name, count in n.items() if name not in ("batches", "blocks")]
    count = n.get("probes", min(draws, default=n.get("batches", 0)))
    return max(1, count - 1) if count else inf
