"""The ends of a spectrum by Lanczos in bounded memory: which Ritz pairs are wanted, and when they are there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.restart import expand_within
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.status import Status

V = TypeVar("V")
Which = Literal["both", "largest", "smallest"]

GUARDS = 2  # pairs beyond the wanted ones at each end: with them the last wanted pair has a neighbour to be told from
# Lanczos may look converged at a wrong pair for a step or two before a hidden one shows: ask for more than one.
_QUIET_STEPS = 3
_REACH = 0.05  # of the spectral radius: what may hide beyond the outermost pair before a run may end


@dataclass(frozen=True, slots=True)
class Target:
    """The k outermost eigenpairs at one end or both, to a residual of `tolerance` times the value."""

    k: int
    which: Which
    tolerance: float
    epsilon: float
    """Of the vectors' floating-point numbers."""

    @property
    def signs(self) -> tuple[int, ...]:
        """The ends that are wanted: 1 above, -1 below."""
        return {"both": (1, -1), "largest": (1,), "smallest": (-1,)}[self.which]

    def ends(self, count: int, *, extra: int = 0) -> tuple[int, int]:
        """How many of `count` values in rising order are wanted below and above, and `extra` more; without overlap."""
        k = self.k + extra
        low = min(k, count) if self.which == "smallest" else min(k, count // 2) if self.which == "both" else 0
        return low, min(k, count - low) if self.which != "smallest" else 0

    def places(self, count: int, *, extra: int = 0) -> np.ndarray:
        """The places of those values, rising."""
        low, high = self.ends(count, extra=extra)
        return np.concatenate([np.arange(low), np.arange(count - high, count)]).astype(int)

    def converged(self, values: np.ndarray, residual_norms: np.ndarray, *, radius: float) -> np.ndarray:
        """Whether each residual is small enough."""
        # An eigenvalue near zero cannot have a residual below the rounding errors that the largest one leaves.
        floor = 10 * self.epsilon * radius
        return residual_norms <= np.maximum(self.tolerance * np.abs(values), floor)


def smallest_capacity(k: int, which: Which) -> int:
    """The vectors that a restarted run needs at the least: k and 6 more at each end, 3 or 4 of which are kept."""
    return (k + 6) * (2 if which == "both" else 1)


def run_to_ends(
    operator: LinearOperator[V],
    state: LanczosState[V],
    target: Target,
    *,
    max_steps: int,
    capacity: int,
    seed: int,
    on_step: Callable[[int, str, Mapping[str, float]], None],
) -> Status:
    """Expand until the wanted pairs have converged three steps in a row, at most `max_steps` products.

    And until an eigenvalue that hides beyond the outermost by more than 5 % is unlikely. Where a Krylov space ends
    early a new direction follows. Holds at most `capacity` vectors in the basis.
    """
    space, quiet = state.space, 0
    while state.num_matvecs < max_steps:
        low, high = target.ends(capacity, extra=_kept_beyond(target, capacity))
        expand_within(state, operator, capacity=capacity, low=low, high=high)
        ritz = state.ritz()
        radius, places = float(np.abs(ritz.values).max()), target.places(len(ritz.values))
        good = target.converged(ritz.values[places], ritz.residual_norms[places], radius=radius)
        on_step(state.num_matvecs, f"{int(good.sum())} of {len(places)} pairs", state.last_step(ritz))
        enough = good.all() and state.num_matvecs >= min(2 * target.k, space.dimension)
        reach = state.reach(target.signs) if enough else None
        quiet = quiet + 1 if reach is not None and reach <= _REACH * radius else 0
        if state.exhausted and not state.restart_with(space.random("gaussian", seed=seed, index=state.num_matvecs)):
            return Status.SPACE_EXHAUSTED
        if quiet == _QUIET_STEPS:
            return Status.CONVERGED
    return Status.BUDGET_SPENT


def _kept_beyond(target: Target, capacity: int) -> int:
    """A third of what a full basis has beyond the wanted pairs, over the ends: near the best at 13 to 21 vectors."""
    ends = len(target.signs)
    return max(1, (capacity - ends * target.k) // (3 * ends))
