"""Trace and Frobenius norm by Hutchinson on what a Krylov basis leaves, and each block's trace with them.

tr H = sum_j v_j.Hv_j + E g.Hg with g = (I - V V^T) z: unbiased for any basis V that does not depend on z, and
the best of the known estimators at equal products where a few eigenvalues dominate (Chen and Hallman 2022).
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.basis import Basis, project_out
from hesscli.linalg.deflation import START_INDEX, goes_on
from hesscli.linalg.lanczos import LanczosState
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.statistics import Estimate, mean_estimate

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Trace:
    """Estimates over probes; blocks in the order given."""

    trace: Estimate
    squared_frobenius: Estimate
    blocks: tuple[Estimate, ...]
    dimension: int


@dataclass(frozen=True, slots=True)
class _KrylovPart:
    """What the basis contributes exactly."""

    diagonal: np.ndarray | float
    """(parts,): the part of the trace of each part of the space that is not sampled."""
    squares: float
    basis: Basis


def trace(
    operator: LinearOperator[V],
    *,
    probes: int,
    steps: int,
    blocks: list[frozenset[int]],
    seed: int,
    on_event: OnEvent,
) -> Trace:
    """Tr H, ||H||_F^2 = sum ||Hv_j||^2 + E ||Hg||^2 and the trace of each diagonal block.

    `steps` products build the basis, which is held; one product a probe follows. With no steps this is the
    estimator of Girard and Hutchinson. Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    on_event(Started("trace", steps + probes))
    known = _krylov_part(operator, min(steps, space.dimension), seed, on_event)
    parts, squares = [], []
    for i in range(probes):
        g = space.random("rademacher", seed=seed, index=i)
        project_out(known.basis, g)
        product = operator.matvec(g)
        square = space.inner(product, product)
        if not np.isfinite(square):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        squares.append(known.squares + square)
        # The block's own vector is z_b, not g_b; P H g takes the difference out (see _krylov_part).
        z = space.random("rademacher", seed=seed, index=i) if steps else g
        project_out(known.basis, product)
        parts.append(known.diagonal + space.inners(z, product))
        on_event(Advanced("trace", steps + i + 1))
    on_event(Finished("trace"))
    table = np.array(parts)
    return Trace(
        mean_estimate(table.sum(axis=1)),
        mean_estimate(np.array(squares)),
        tuple(mean_estimate(table[:, sorted(block)].sum(axis=1)) for block in blocks),
        space.dimension,
    )


def _krylov_part(operator: LinearOperator[V], steps: int, seed: int, on_event: OnEvent) -> _KrylovPart:
    """The basis and the sums over it.

    With E_b the restriction to a part: tr(E_b H) = tr(E_b H V V^T) + tr(E_b P H P) + tr(E_b P H V V^T). The
    first is sum_j (v_j)_b.(Hv_j)_b; the second is sampled; in the third P H v_j is zero for all but the last
    vector, where it is beta_m v_{m+1}.
    """
    space = operator.space
    if steps < 1:
        return _KrylovPart(0.0, 0.0, space.basis())
    state = LanczosState.start(space, space.random("gaussian", seed=seed, index=START_INDEX), reorthogonalise=True)
    diagonal: np.ndarray | float = 0.0
    squares = 0.0
    while goes_on(state, steps=steps, seed=seed):
        v = state.current
        product = operator.matvec(v)
        diagonal = diagonal + space.inners(v, product)
        squares += space.inner(product, product)
        state.absorb(product)
        on_event(Advanced("trace", state.num_matvecs))
        if state.num_matvecs == steps and not state.exhausted:
            diagonal = diagonal + state.betas[-1] * space.inners(v, state.current)
    assert state.basis is not None
    return _KrylovPart(diagonal, squares, state.basis)
