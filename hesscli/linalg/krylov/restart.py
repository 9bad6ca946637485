"""Thick restart: a Krylov run goes on from the wanted part of its space, in bounded memory.

Krylov-Schur (Stewart 2001), which for an exact product is the thick restart of Wu and Simon (2000).
"""

from typing import TypeVar

import numpy as np
from scipy.linalg import schur
from scipy.linalg.lapack import dtrsen

from hesscli.linalg.krylov.lanczos import LanczosState, Restarted
from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")


def expand_within(state: LanczosState[V], operator: LinearOperator[V], *, capacity: int, low: int, high: int) -> None:
    """One more step: one product. A basis of `capacity` vectors is cut first to `low` + `high` Ritz vectors."""
    assert state.basis is not None
    if len(state.basis) >= capacity:
        thick_restart(state, low=low, high=high)
    state.expand(operator)


def thick_restart(state: LanczosState[V], *, low: int, high: int) -> None:
    """Keep the `low` smallest and `high` largest Ritz vectors and the vector that follows; no product.

    The basis is combined in place. H V = V G + v b^T goes over into H VU = VU (U^T G U) + v (U^T b)^T, for U spans
    an invariant subspace of G: of its symmetric part where the product is exact, of G itself where it is noisy.
    A Schur basis keeps conjugate pairs, which noise can make, together: then one vector more is kept.
    """
    assert state.basis is not None
    g, last = state.projection()
    ritz = state.ritz()
    kept = np.arange(len(ritz.values))
    dropped = kept[low : len(kept) - high]
    u = _schur_vectors(g, low, high) if state.noise() else np.delete(ritz.vectors, dropped, axis=1)
    with np.errstate(divide="ignore"):
        log_betas = state.restarted.log_betas + float(np.log(state.betas).sum())
    state.basis.recombine(u)
    state.restarted = Restarted(
        leading=u.T @ g @ u,
        coupling=u.T @ last,
        num_matvecs=state.num_matvecs,
        dropped=np.concatenate([state.restarted.dropped, ritz.values[dropped]]),
        log_betas=log_betas,
    )
    state.alphas, state.betas, state.coefficients, state.previous = [], [], [], None


def _schur_vectors(g: np.ndarray, low: int, high: int) -> np.ndarray:
    """Orthonormal columns that span G's invariant subspace to its outermost eigenvalues by real part.

    By LAPACK's own routine for it: scipy's sorted form is refused where eigenvalues that lie within rounding of each
    other change their order on the way, which does the subspace no harm.
    """
    t, vectors = schur(g, output="real")
    values = np.linalg.eigvals(g).real
    order = np.sort(values)
    below = (order[low - 1] + order[low]) / 2 if low else -np.inf
    above = (order[-high] + order[-high - 1]) / 2 if high else np.inf
    on_diagonal = np.diag(t)  # of a conjugate pair, which is a block of two, both entries are the real part
    wanted = (on_diagonal <= below) | (on_diagonal >= above)
    _, vectors, _, _, count, _, _, _ = dtrsen(wanted.astype(np.int32), t, vectors, job=b"N")
    return np.asarray(vectors[:, :count])
