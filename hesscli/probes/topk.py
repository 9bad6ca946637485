"""Extreme eigenpairs by restarted Lanczos, certified by products of their own, and searched for what was missed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.basis import Basis
from hesscli.linalg.krylov.completeness import Completeness, find_missed
from hesscli.linalg.krylov.extremes import GUARDS, Target, Which, run_to_ends
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.rayleigh_ritz import TOGETHER, Certified, certify, eigenvalue_bars
from hesscli.linalg.krylov.refinement import refined
from hesscli.linalg.krylov.restart import thick_restart
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.status import Status

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certified Ritz pair: an eigenvalue lies within `bar` of `value`, and within `residual_norm` whatever else."""

    value: float
    residual_norm: float
    converged: bool
    bar: float
    """residual_norm^2 / gap where the gap is established, else the residual. An error that the product makes the same
    each time, and symmetric, is in neither."""


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
    """The length of the product's error on a unit vector, as the run shows it; 0 if it is nothing but rounding, and
    where another product built the basis."""
    orthogonality_loss: float
    asymmetry: float
    completeness: Completeness | None
    """None where the run did not converge: what is missing then is not asked."""
    quadratic_forms: np.ndarray | None
    """What the callable of that name gave, (batches, pairs)."""


def topk(
    operator: LinearOperator[V],
    *,
    k: int,
    which: Which,
    max_steps: int,
    tolerance: float,
    seed: int,
    on_event: OnEvent,
    krylov_dim: int | None = None,
    basis_operator: LinearOperator[V] | None = None,
    quadratic_forms: Callable[[Sequence[V]], np.ndarray] | None = None,
) -> TopK:
    """The k largest and k smallest eigenpairs (or one end), each with its residual and a bar.

    Products: at most `max_steps` for the Krylov space, with `basis_operator` where one is given (a cheaper one: its
    errors are in the basis, and what is certified does not have them); one for each pair and two guards at each end
    to certify; 8 or 16 to see whether one was missed, and more where one was. Where a cheaper product's errors, or
    fewer digits of the basis, leave residuals above the tolerance, one product more a vector takes them out of the
    bulk, and one certifies again.

    Stops when every wanted residual is below `tolerance` times the value (and above what the largest eigenvalue's
    rounding allows) three steps in a row, and an eigenvalue that hides beyond the outermost by more than 5 % is
    unlikely. Holds as many vectors as steps, or `krylov_dim` with restarts, and three; at the end those of the pairs
    and guards and ten.

    Where the recurrence shows that the product is noisy, the values are those of the whole Gram-Schmidt matrix, which
    are better than Rayleigh quotients then; the bars are about them.

    `quadratic_forms` maps a few vectors u to u.H_b u for each batch b, (batches, vectors); it is called on the pairs.

    Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    target = Target(k, which, tolerance, space.epsilon)
    if krylov_dim is None or krylov_dim >= space.dimension:
        krylov_dim, max_steps = space.dimension, min(max_steps, space.dimension)
    state = LanczosState.start(space, space.random("gaussian", seed=seed, index=0), reorthogonalise=True)
    on_event(Started("topk", max_steps))
    status = run_to_ends(
        basis_operator or operator,
        state,
        target,
        max_steps=max_steps,
        capacity=krylov_dim,
        seed=seed,
        on_step=partial(_advance, on_event, "topk"),
    )
    on_event(Finished("topk"))
    reach, loss = state.reach(target.signs), state.orthogonality_loss()
    basis, others = _extracted(state, target)
    arnoldi = np.sort(np.linalg.eigvals(state.projection()[0]).real)
    on_event(Started("certify", len(basis)))
    basis, certified = _certified(operator, basis, target, cheap=basis_operator is not None)
    on_event(Finished("certify"))
    completeness = None
    if others is not None:
        completeness = Completeness(0, 0, 0, (others.min(initial=np.inf), others.max(initial=-np.inf)), True)
    elif status is Status.CONVERGED:
        on_event(Started("completeness", None))
        completeness = find_missed(
            operator,
            basis,
            certified.values,
            certified.residual_norms,
            target,
            noise=state.noise(),
            max_steps=max_steps - state.num_matvecs,
            capacity=krylov_dim,
            seed=seed,
            on_step=partial(_advance, on_event, "completeness"),
        )
        if completeness.num_found:
            certified = certify(operator, basis)
        on_event(Finished("completeness"))
    bars = eigenvalue_bars(certified, rest=completeness.rest if completeness else (None, None))
    if state.noise() and basis_operator is None and len(arnoldi) == len(bars):
        bars, certified = _moved(certified, bars, arnoldi)
    good = target.converged(
        certified.values, certified.residual_norms, radius=max(state.scale, np.abs(certified.values).max())
    )
    places = target.places(len(bars))[::-1]
    pairs = [
        Pair(float(certified.values[i]), float(certified.residual_norms[i]), bool(good[i]), float(bars[i]))
        for i in places
    ]
    if status is Status.CONVERGED and not all(p.converged for p in pairs):
        status = Status.NOT_CERTIFIED
    return TopK(
        tuple(pairs),
        target.ends(len(bars))[1],
        status,
        state.num_matvecs,
        0.0 if completeness and completeness.complete else reach,
        0.0 if basis_operator else state.noise(),
        loss,
        certified.asymmetry,
        completeness,
        _forms(basis, places, quadratic_forms),
    )


def _extracted(state: LanczosState[V], target: Target) -> tuple[Basis[V], np.ndarray | None]:
    """The state's basis, cut to the wanted Ritz vectors and guards; the other Ritz values if they are all there is."""
    assert state.basis is not None  # topk always keeps it
    values = state.ritz().values
    low, high = target.ends(len(values), extra=GUARDS)
    others = values[low : len(values) - high] if len(values) == state.space.dimension else None
    if low + high < len(values):
        thick_restart(state, low=low, high=high)
    return state.basis, others


def _certified(
    operator: LinearOperator[V], basis: Basis[V], target: Target, *, cheap: bool
) -> tuple[Basis[V], Certified]:
    """The Ritz vectors and what they are certified to, refined first where their basis's errors would be in the way."""
    if 3 * basis.rounding > target.tolerance:  # a Ritz vector's residual is about the rounding times its value
        basis = refined(operator, basis)
        return basis, certify(operator, basis)
    certified = certify(operator, basis)
    places = target.places(len(basis))
    radius = float(np.abs(certified.values).max())
    if cheap and not target.converged(certified.values, certified.residual_norms, radius=radius)[places].all():
        basis = refined(operator, basis)
        certified = certify(operator, basis)
    return basis, certified


def _moved(certified: Certified, bars: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, Certified]:
    """Values from the whole Gram-Schmidt matrix of a noisy product in the place of Rayleigh quotients, bars and all.

    A noisy basis makes a quotient fall short by (noise / value)^2, whatever the number of parameters n; an eigenvalue
    of the matrix that is not made symmetric errs by noise / sqrt(n). Moved by no more than the residual: the residual
    of the new value is the root of the squares, for it is at a right angle.
    """
    shifts = values - certified.values
    shifts[np.abs(shifts) > certified.residual_norms] = 0.0
    residual_norms = np.hypot(certified.residual_norms, shifts)
    return bars + np.abs(shifts), Certified(certified.values + shifts, residual_norms, certified.asymmetry)


def _forms(
    basis: Basis[V], places: np.ndarray, quadratic_forms: Callable[[Sequence[V]], np.ndarray] | None
) -> np.ndarray | None:
    if quadratic_forms is None:
        return None
    together = [places[start : start + TOGETHER] for start in range(0, len(places), TOGETHER)]
    return np.concatenate([quadratic_forms([basis.vector(i) for i in some]) for some in together], axis=1)


def _advance(on_event: OnEvent, stage: str, done: int, detail: str, values: Mapping[str, float]) -> None:
    on_event(Advanced(stage, done, detail, values))
