"""Lanczos with a sliding window: each new vector is made orthogonal to the latest few, and to no others."""

from dataclasses import dataclass, field
from typing import TypeVar

from hesscli.linalg.krylov.lanczos import LanczosState

V = TypeVar("V")


@dataclass
class WindowedLanczos(LanczosState[V]):
    """A run without a basis that holds the last `window` vectors (arXiv 2602.00816, section 4).

    It keeps neighbours orthogonal, which the three-term recurrence does by itself; what is lost is lost to the
    outliers found long before, so copies of them come as without it. For a comparison, not for a gain.
    """

    window: int = 1
    recent: list[V] = field(default_factory=list)

    def _three_term(self, w: V, unit: float) -> float:
        alpha = super()._three_term(w, unit)
        self.recent = [*self.recent, self.current][-self.window :]
        for u in self.recent:
            self.space.axpy(-self.space.inner(u, w), u, w)
        return alpha
