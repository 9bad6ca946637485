"""XTrace (Epperly, Tropp and Webber 2024, arXiv 2301.07825).

Every vector both builds a basis and samples what the others' basis leaves. The draws are exchangeable and each
unbiased, but they depend on each other.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.linalg import solve_triangular

from hesscli.linalg.estimators.hutchinson import Tick, sketch_range, sketching_vector
from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """One entry a vector: the exact part on the others' basis Q_i, and draws on what it leaves, P_i H P_i."""

    traces: np.ndarray
    """(k,): tr(Q_i^T H Q_i)."""
    forms: np.ndarray
    """(k,): s.P_i H P_i s."""
    squares: np.ndarray
    """(k,): ||P_i H P_i s||^2."""
    known_squares: np.ndarray
    """(k,): ||H Q_i||_F^2."""
    full_squares: np.ndarray
    """(k,): ||H P_i s||^2."""
    num_matvecs: int
    complete: bool
    """H has no more rank than there are vectors: the first entry of `traces` and `known_squares` is the answer."""


def xtrace(operator: LinearOperator[V], *, vectors: int, seed: int, tick: Tick) -> LeaveOneOut:
    """The draws from two products a vector; holds Q and H Q, 2 * `vectors` of them.

    Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    q, r, num_sketches = sketch_range(operator, sketches=vectors, seed=seed, tick=tick)
    k, images = len(q), space.basis()
    small, gram, lengths = np.zeros((k, k)), np.zeros((k, k)), np.zeros(k)
    for j in range(k):
        product = operator.matvec(q.vector(j))
        tick()
        small[:, j] = q.inner(product)
        lengths[j] = space.norm(product)
        if lengths[j] > 0:  # of unit length, for squares of a large or small matrix are beyond float32
            space.scale(1.0 / lengths[j], product)
        images.append(product)
        gram[: j + 1, j] = gram[j, : j + 1] = images.inner(product) * lengths[: j + 1] * lengths[j]
    small = (small + small.T) / 2
    num_matvecs = num_sketches + k
    trace, square = float(np.trace(small)), float(np.trace(gram))
    if k < vectors or k == space.dimension:
        none = np.zeros(0)
        return LeaveOneOut(np.array([trace]), none, none, np.array([square]), none, num_matvecs, complete=True)
    w = np.array([q.inner(sketching_vector(operator, seed, i)) for i in range(k)]).T
    # Column i of R^-T is orthogonal to every column of R but its own: Q_i = Q without that direction.
    outward = solve_triangular(r, np.eye(k), trans="T")
    outward /= np.linalg.norm(outward, axis=0)
    traces, forms, squares, known, full = (np.empty(k) for _ in range(5))
    for i in range(k):
        s, y = outward[:, i], r[:, i]
        u = w[:, i] - s * (s @ w[:, i])
        # Uniform on the sphere, and independent of the others' basis: what that leaves has a uniform direction.
        kept = space.dimension - float(u @ u)
        factor = (space.dimension - k + 1) / kept if kept > 0 else 1.0
        left = y - small @ u
        traces[i] = trace - s @ small @ s
        known[i] = square - s @ gram @ s
        forms[i] = factor * ((s @ w[:, i]) * (s @ y) - u @ left)
        full[i] = factor * (y @ y - 2 * u @ small @ y + u @ gram @ u)
        inside = left - s * (s @ left)
        squares[i] = full[i] - factor * (inside @ inside)
    return LeaveOneOut(traces, forms, squares, known, full, num_matvecs, complete=False)
