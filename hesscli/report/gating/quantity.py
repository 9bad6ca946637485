"""Arithmetic with figures that have errors.

A sum of figures with constant factors stays one, exactly: its interval is taken once, at the end. Every other operation
(a product or a quotient of two figures, the absolute value of a figure that may be zero, the larger of two that
overlap) turns into a figure of its own whose interval is the range of all its operands' intervals, each at a level
raised for their number (Bonferroni): wider than needed, never narrower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import isfinite

from hesscli.report.comparing.combination import Figure, Interval, combined
from hesscli.report.comparing.spread import Arm, Spread


class Unknown(Exception):  # noqa: N818 - no error: the verdict is inconclusive
    """Nothing can be told of `what`, for the reason `why`."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


@dataclass(frozen=True)
class Quantity:
    """constant + sum c f."""

    constant: float = 0.0
    factors: dict[Figure, float] = field(default_factory=dict)

    def interval(self, *, alpha: float) -> Interval:
        """Return the value and its ends."""
        found = combined([(c, f) for f, c in self.factors.items()], alpha=alpha)
        by = self.constant
        return Interval(found.value + by, found.low + by, found.high + by, found.method, found.data)

    @property
    def is_constant(self) -> bool:
        """Whether it has no figure in it."""
        return not any(self.factors.values())


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The operations; `alpha` is the chance that one interval among those of the expression's figures misses."""

    alpha: float

    def apply(self, sign: str, operands: Sequence[Quantity]) -> Quantity:
        """Return the result of an operation.

        Raises Unknown where it has no bounded range.
        """
        if sign in ("+", "-"):
            return plus(operands[0], operands[1], 1.0 if sign == "+" else -1.0)
        if sign == "*":
            return self._times(*operands)
        if sign == "/":
            return self._over(*operands)
        if sign == "abs":
            return self._absolute(operands[0])
        return self._extreme(operands, largest=sign == "max")

    def _ends(self, quantity: Quantity) -> tuple[float, float]:
        found = quantity.interval(alpha=self.alpha)
        return found.low, found.high

    def _times(self, left: Quantity, right: Quantity) -> Quantity:
        for one, other in ((left, right), (right, left)):
            if one.is_constant:
                return scaled(other, one.constant)
        ranges = [self._ends(left), self._ends(right)]
        corners = [a * b for a, b in product(*ranges)]
        return _figure(value_of(left) * value_of(right), min(corners), max(corners))

    def _over(self, left: Quantity, right: Quantity) -> Quantity:
        if right.is_constant:
            if not right.constant:
                raise Unknown("the expression", "divides by zero")
            return scaled(left, 1.0 / right.constant)
        low, high = self._ends(right)
        if low <= 0 <= high:
            raise Unknown("the expression", "divides by a figure that is not told apart from zero")
        corners = [a / b for a, b in product(self._ends(left), (low, high))]
        return _figure(value_of(left) / value_of(right), min(corners), max(corners))

    def _absolute(self, quantity: Quantity) -> Quantity:
        low, high = self._ends(quantity)
        if low >= 0:
            return quantity
        if high <= 0:
            return scaled(quantity, -1.0)
        return _figure(abs(value_of(quantity)), 0.0, max(-low, high))

    def _extreme(self, operands: Sequence[Quantity], *, largest: bool) -> Quantity:
        if not largest:
            return scaled(self._extreme([scaled(q, -1.0) for q in operands], largest=True), -1.0)
        ranges = [self._ends(q) for q in operands]
        least = max(low for low, _ in ranges)
        alive = [q for q, (_, high) in zip(operands, ranges, strict=True) if high >= least]
        if len(alive) == 1:
            return alive[0]
        return _figure(max(map(value_of, operands)), least, max(high for _, high in ranges))


def plus(left: Quantity, right: Quantity, factor: float) -> Quantity:
    """Return left + factor right."""
    factors = dict(left.factors)
    for figure, c in right.factors.items():
        factors[figure] = factors.get(figure, 0.0) + factor * c
    return Quantity(left.constant + factor * right.constant, factors)


def scaled(quantity: Quantity, by: float) -> Quantity:
    """Return the quantity times a number."""
    return Quantity(quantity.constant * by, {f: c * by for f, c in quantity.factors.items()})


def value_of(quantity: Quantity) -> float:
    """Return the value without its error."""
    return quantity.constant + sum(c * f.spread.value for f, c in quantity.factors.items())


def _figure(value: float, low: float, high: float) -> Quantity:
    if not all(map(isfinite, (value, low, high))):
        raise Unknown("the expression", "is beyond what a number holds")
    value = min(max(value, low), high)
    spread = Spread(value, Arm(0.0, value - low), Arm(0.0, high - value), 1.0)
    return Quantity(0.0, {Figure(spread): 1.0})
