"""Extreme eigenpairs by Lanczos with full reorthogonalisation, certified by products of their own."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.lanczos import LanczosState, Ritz
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.rayleigh_ritz import certify
from hesscli.linalg.status import Status

V = TypeVar("V")
Which = Literal["both", "largest", "smallest"]

# Lanczos may look converged at a wrong pair for a step or two before a hidden one shows: ask for more than one.
_QUIET_STEPS = 3
_REACH = 0.05  # of the spectral radius: 23 steps at half a million parameters, whatever the spectrum


@dataclass(frozen=True, slots=True)
class Pair:
    """A certified Ritz pair: an eigenvalue lies within `residual_norm` of `value`."""

    value: float
    residual_norm: float
    converged: bool


@dataclass(frozen=True, slots=True)
class TopK:
    """Pairs in falling order of value, from both ends or from one."""

    pairs: tuple[Pair, ...]
    num_high: int
    """The first `num_high` pairs are the largest eigenvalues, the rest the smallest."""
    status: Status
    num_steps: int
    reach: float | None
    """How far beyond the outermost pairs an eigenvalue may lie, with 95 % chance; None where steps are too few."""
    noise: float
    """The length of the product's error on a unit vector, as the run shows it; 0 if it is nothing but rounding."""
    orthogonality_loss: float
    asymmetry: float


def topk(
    operator: LinearOperator[V],
    *,
    k: int,
    which: Which,
    max_steps: int,
    tolerance: float,
    seed: int,
    on_event: OnEvent,
) -> TopK:
    """The k largest and k smallest eigenpairs (or one end), each with its residual.

    At most `max_steps` Lanczos products, then one per pair to certify. Stops when every wanted residual is
    below `tolerance` times the value (and above what the largest eigenvalue's rounding allows) three steps
    in a row, and an eigenvalue that hides beyond the outermost by more than 5 % is unlikely. Holds the basis
    of as many vectors as steps, and 3 per pair at the end. One Krylov space shows one copy of a multiple
    eigenvalue until it is exhausted.

    Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    max_steps = min(max_steps, space.dimension)
    state = LanczosState.start(space, space.random("gaussian", seed=seed, index=0), reorthogonalise=True)
    on_event(Started("topk", max_steps))
    quiet, status = 0, Status.BUDGET_SPENT
    while state.num_matvecs < max_steps:
        state.expand(operator)
        ritz = state.ritz()
        wanted, _ = _wanted(ritz, k, which)
        good = _converged(ritz.values[wanted], ritz.residual_norms[wanted], tolerance, ritz, space.epsilon)
        on_event(Advanced("topk", state.num_matvecs, f"{int(good.sum())} of {len(wanted)} pairs"))
        enough = good.all() and state.num_matvecs >= min(2 * k, space.dimension)
        quiet = quiet + 1 if enough and _far_enough(state) else 0
        if state.exhausted and not state.restart_with(space.random("gaussian", seed=seed, index=state.num_matvecs)):
            status = Status.SPACE_EXHAUSTED
            break
        if quiet == _QUIET_STEPS:
            status = Status.CONVERGED
            break
    on_event(Finished("topk"))
    return _certified(operator, state, k=k, which=which, tolerance=tolerance, status=status, on_event=on_event)


def _far_enough(state: LanczosState[V]) -> bool:
    """Whether what may hide beyond the outermost Ritz values is small: steps are cheap against a missed eigenvalue."""
    reach = state.reach()
    return reach is not None and reach <= _REACH * max(abs(v) for v in state.ritz().values[[0, -1]])


def _wanted(ritz: Ritz, k: int, which: Which) -> tuple[np.ndarray, int]:
    """Places of the wanted Ritz values, rising, and how many are of the low end; the two ends do not overlap."""
    m = len(ritz.values)
    low = min(k, m) if which == "smallest" else min(k, m // 2) if which == "both" else 0
    high = min(k, m - low) if which != "smallest" else 0
    return np.concatenate([np.arange(low), np.arange(m - high, m)]).astype(int), low


def _converged(values: np.ndarray, residuals: np.ndarray, tolerance: float, ritz: Ritz, epsilon: float) -> np.ndarray:
    # An eigenvalue near zero cannot have a residual below the rounding errors that the largest one leaves.
    floor = 10 * epsilon * float(np.abs(ritz.values).max())
    return residuals <= np.maximum(tolerance * np.abs(values), floor)


def _certified(
    operator: LinearOperator[V],
    state: LanczosState[V],
    *,
    k: int,
    which: Which,
    tolerance: float,
    status: Status,
    on_event: OnEvent,
) -> TopK:
    assert state.basis is not None  # topk always keeps it
    ritz = state.ritz()
    wanted, num_low = _wanted(ritz, k, which)
    on_event(Started("certify", len(wanted)))
    certified = certify(operator, state.basis.combine(ritz.vectors[:, wanted]))
    on_event(Finished("certify"))
    good = _converged(certified.values, certified.residual_norms, tolerance, ritz, operator.space.epsilon)
    pairs = [
        Pair(float(value), float(residual), bool(ok))
        for value, residual, ok in zip(certified.values, certified.residual_norms, good, strict=True)
    ]
    if status is Status.CONVERGED and not good.all():
        status = Status.BUDGET_SPENT
    return TopK(
        tuple(reversed(pairs)),
        len(pairs) - num_low,
        status,
        state.num_matvecs,
        state.reach(),
        state.noise(),
        state.orthogonality_loss(),
        certified.asymmetry,
    )
