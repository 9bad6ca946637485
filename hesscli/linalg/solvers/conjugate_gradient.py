"""Conjugate gradients (Hestenes and Stiefel 1952) for (H + damping I) x = b, several dampings at once.

The smallest damping is solved in the classical form, which a noisy product harms far less than a Lanczos form: 1 % of
noise leaves a residual of 2e-2 where T is made indefinite by it. The residuals of the others are multiples of the
same vector (Jegerlehner 1996, hep-lat/9612014), so they cost no product, and are the smaller ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.solvers.preconditioner import Preconditioner
from hesscli.linalg.space import Space

V = TypeVar("V")
_FLAT = 10.0  # rounding errors of a product


def curvature_rounding(space: Space[V], *, product_norm: float, length: float, damping: float) -> float:
    """What of p.(H + damping I)p may be rounding alone, for ||H p|| and ||p||.

    A definite matrix has less curvature than that along no direction, unless its condition number is above 1e12 in
    float32: the least of p.Ap / ||p|| ||Ap|| is 2 / sqrt(condition) (Kantorovich).
    """
    return _FLAT * space.epsilon * length * (product_norm + damping * length)


@dataclass(slots=True)
class _Shifted(Generic[V]):
    """One damping: its solution, its direction, and its residual over that of the smallest damping."""

    shift: float
    solution: V
    direction: V
    multiple: float = 1.0
    ratio: float = 1.0  # of the last two multiples
    updated: bool = True


@dataclass
class ConjugateGradients(Generic[V]):
    """The iteration between two steps. Vectors held: the residual, and two for each damping."""

    space: Space[V]
    damping: float
    """The smallest, of which the steps and ratios are."""
    preconditioner: Preconditioner[V] | None
    residual: V
    square: float
    """r.M^-1 r for the residual r."""
    norm: float
    systems: dict[float, _Shifted[V]]
    steps: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    indefinite: bool = False
    """The direction has no curvature above zero with the smallest damping: no step was taken, and none may follow."""

    @classmethod
    def start(
        cls, space: Space[V], rhs: V, *, dampings: Sequence[float], preconditioner: Preconditioner[V] | None
    ) -> "ConjugateGradients[V]":
        """The iteration at x = 0. A preconditioner is made for one damping, and takes no other."""
        if preconditioner is not None and len(dampings) > 1:
            msg = "a preconditioner is for one damping"
            raise ValueError(msg)
        least = min(dampings)
        z = rhs if preconditioner is None else preconditioner.inverse(rhs, damping=least)
        systems = {d: _Shifted(d - least, space.zeros(), space.copy(z)) for d in dampings}
        residual = space.copy(rhs)
        return cls(space, least, preconditioner, residual, space.inner(rhs, z), space.norm(rhs), systems)

    @property
    def num_matvecs(self) -> int:
        """Products taken in so far."""
        return len(self.steps) + self.indefinite

    @property
    def exhausted(self) -> bool:
        """Nothing is left of the residual: no step can follow."""
        return not self.square > 0

    def expand(self, operator: LinearOperator[V]) -> None:
        """One more step: one product. Raises FloatingPointError where it is not finite."""
        space, direction = self.space, self.systems[self.damping].direction
        w = operator.matvec(direction)
        length = space.norm(direction)
        rounding = curvature_rounding(space, product_norm=space.norm(w), length=length, damping=self.damping)
        space.axpy(self.damping, direction, w)
        curvature = space.inner(direction, w)
        if not np.isfinite(curvature):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        if curvature <= rounding:  # a step along a null vector would be as long as rounding makes it
            self.indefinite = True
            return
        step = self.square / curvature
        before = self.ratios[-1] / self.steps[-1] if self.steps else 0.0
        space.axpy(-step, w, self.residual)
        del w
        z = self.residual
        if self.preconditioner is not None:
            z = self.preconditioner.inverse(self.residual, damping=self.damping)
        square, self.square = self.square, space.inner(self.residual, z)
        self.norm = space.norm(self.residual)
        self.steps.append(step)
        self.ratios.append(self.square / square)
        for system in self.systems.values():
            self._follow(system, z, before)

    def _follow(self, system: _Shifted[V], z: V, before: float) -> None:
        """Take the step in one damping's terms."""
        step = self.steps[-1]
        system.ratio = 1.0 / (1.0 + system.shift * step + step * before * (1.0 - system.ratio))
        if system.updated:
            self.space.axpy(step * system.ratio, system.direction, system.solution)
        system.multiple *= system.ratio
        self.space.scale(self.ratios[-1] * system.ratio**2, system.direction)
        self.space.axpy(system.multiple, z, system.direction)

    def residual_norm(self, damping: float) -> float:
        """||b - (H + damping I) x|| as the recurrence has it: blind to noise of the product."""
        return self.norm * self.systems[damping].multiple

    def solution(self, damping: float) -> V:
        """The solution so far, not to be changed."""
        return self.systems[damping].solution

    def direction(self) -> V:
        """The last direction, of the smallest damping."""
        return self.systems[self.damping].direction

    def drop(self, damping: float) -> None:
        """Leave a damping's solution as it is and let go of what it needed; the smallest one's serves the others."""
        if damping == self.damping:
            self.systems[damping].updated = False
        else:
            del self.systems[damping]

    def tridiagonal(self) -> tuple[list[float], list[float]]:
        """The Lanczos matrix of H, or of M^-1/2 (H + damping I) M^-1/2: its diagonal and what is beside it, (m,) each.

        Saad 2003, section 6.7.3.
        """
        shift = self.damping if self.preconditioner is None else 0.0
        before = [0.0, *(ratio / step for ratio, step in zip(self.ratios, self.steps, strict=True))]
        alphas = [1.0 / step + b - shift for step, b in zip(self.steps, before, strict=False)]
        betas = [ratio**0.5 / step for ratio, step in zip(self.ratios, self.steps, strict=True)]
        return alphas, betas
