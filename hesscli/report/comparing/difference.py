"""Whether one figure changed from one measurement to another."""

from dataclasses import dataclass
from typing import Literal

from hesscli.report.comparing.combination import Figure, Interval, combined
from hesscli.report.comparing.measured import Measured
from hesscli.report.comparing.spread import is_over_rows, spread

Direction = Literal["higher", "lower", "~"]


@dataclass(frozen=True, slots=True)
class Difference:
    """new - base, and what it is called: `~` is a change that is not shown, or too small to be called one."""

    base: float
    new: float
    change: Interval
    verdict: Direction


def figure_of(found: Measured, name: str, *, source: str, other_data: bool = False) -> Figure | str:
    """Return a figure of a measurement, or the reason why it cannot be compared."""
    known = spread(found.metrics[name], other_data=other_data)
    if isinstance(known, str):
        return known
    if other_data:  # the rows are drawn anew, whatever the probes are: independent
        return Figure(known, source, {"seed": source})
    if is_over_rows(found.metrics[name]):  # the seed draws none of it, and the rows are the same in both
        return Figure(known, source, None, found.samples.get(name))
    return Figure(known, source, found.draws, found.samples.get(name))


def difference(base: Figure, new: Figure, *, alpha: float, min_change: float) -> Difference:
    """Return the change of a figure.

    It is called one if its interval, algorithm and precision included, leaves out zero, which it does with the chance
    `alpha` where nothing changed, and if it is larger than `min_change` of the base.
    """
    change = combined([(1.0, new), (-1.0, base)], alpha=alpha)
    told = change.low > 0 or change.high < 0
    large = abs(change.value) > min_change * abs(base.spread.value)
    verdict: Direction = "~" if not (told and large) else "higher" if change.value > 0 else "lower"
    return Difference(base.spread.value, new.spread.value, change, verdict)
