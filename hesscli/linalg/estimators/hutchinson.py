"""Hutchinson's estimator on what a basis leaves: the basis's part is exact, the rest is sampled.

With P = I - Q Q^T and E_b the restriction to a part of the space,
tr(E_b H) = tr(E_b H Q Q^T) + tr(E_b Q Q^T H P) + tr(E_b P H P). The first two are sums over the basis, the last is
sampled: unbiased for any Q that does not depend on the probes. The same holds entry by entry for the diagonal.

Where the basis keeps its vectors rounded, Q is what it keeps: products are taken of that, and the second term, which
needs more of Q than there is at the time, is sampled too. Its vectors are orthogonal to 2^-9 / sqrt(n) only; what that
leaves open is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from hesscli.linalg.basis import Basis, project_out
from hesscli.linalg.estimators.diagonal import DiagonalSums
from hesscli.linalg.krylov.deflation import START_INDEX, goes_on
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import Space

V = TypeVar("V")
Tick = Callable[[], None]

_SKETCH_INDEX = 1 << 42  # sample index of the first sketching vector: no probe draws it
# In this many dimensions and more a projected vector of signs has a direction that is uniform to all intents, and
# its length, which is a draw like any other, is set to its mean; in fewer it is left alone.
UNIFORM = 100


@dataclass(frozen=True, slots=True)
class Known(Generic[V]):
    """What a basis contributes exactly."""

    basis: Basis[V]
    parts: np.ndarray | float
    """(parts,): the part of the trace of each part of the space that is not sampled."""
    squares: float
    """||H Q||_F^2."""
    num_matvecs: int
    skew: float
    """||Q^T Q - diag||_F of a rounded basis: the exact part of the trace is right to this share of ||H Q||_F, that of
    the squares to this share of them."""


@dataclass(frozen=True, slots=True)
class Draws:
    """One row a probe, of B = P H P, as if the projected probe had its mean length."""

    parts: np.ndarray
    """(probes, parts): z_b.(B z)_b; of H P z in the place of B z where the basis is rounded."""
    squares: np.ndarray
    """(probes, parts): ||(B z)_b||^2."""
    full_squares: np.ndarray
    """(probes,): ||H P z||^2."""
    sizes: np.ndarray
    """(parts,): number of entries of each part."""


def krylov_part(
    operator: LinearOperator[V], *, steps: int, seed: int, diagonal: DiagonalSums[V] | None, tick: Tick
) -> Known[V]:
    """The Krylov basis of `steps` products and what it gives; holds as many vectors.

    Chen and Hallman 2022, arXiv 2205.01736. P H v_j is zero for all but the last vector, where it is
    beta_m v_{m+1}.
    """
    space = operator.space
    if steps < 1:
        return Known(space.basis(), 0.0, 0.0, 0, 0.0)
    state = LanczosState.start(space, space.random("gaussian", seed=seed, index=START_INDEX), reorthogonalise=True)
    assert state.basis is not None
    parts: np.ndarray | float = 0.0
    squares = skew = 0.0
    rounded = state.basis.rounding > 0
    while goes_on(state, steps=steps, seed=seed):
        v = state.store()
        length, off = _normalised(space, state.basis, v) if rounded else (1.0, 0.0)
        product = operator.matvec(v)
        parts = parts + space.inners(v, product) / length
        squares += space.inner(product, product) / length
        skew = float(np.hypot(skew, off))
        if diagonal is not None:
            diagonal.know(v, product, 1.0 / length)
        state.absorb(product)
        if state.num_matvecs == steps and not state.exhausted and not rounded:
            parts = parts + state.betas[-1] * space.inners(v, state.current)
            if diagonal is not None:
                last = space.copy(state.current)
                space.scale(state.betas[-1], last)
                diagonal.know(v, last, 1.0)
        tick()
    return Known(state.basis, parts, squares, state.num_matvecs, skew)


def _normalised(space: Space[V], basis: Basis[V], v: V) -> tuple[float, float]:
    """The squared length of v, the basis's last vector as it is kept, and its share of `Known.skew`."""
    return space.inner(v, v), float(np.sqrt(2.0) * np.linalg.norm(basis.inner(v)[:-1]))


def range_part(
    operator: LinearOperator[V], *, sketches: int, seed: int, diagonal: DiagonalSums[V] | None, tick: Tick
) -> Known[V]:
    """An orthonormal basis of the range of H on random vectors, and what it gives: two products a sketching vector.

    Hutch++ (Meyer, Musco, Musco and Woodruff 2021, arXiv 2010.09649). Holds as many vectors as sketches.
    """
    space = operator.space
    basis, _, num_sketches = sketch_range(operator, sketches=sketches, seed=seed, tick=tick)
    parts: np.ndarray | float = 0.0
    squares = skew = 0.0
    for j in range(len(basis)):
        q = basis.vector(j)
        length = 1.0
        if basis.rounding:
            length = space.inner(q, q)
            skew = float(np.hypot(skew, np.linalg.norm(np.delete(basis.inner(q), j))))
        product = operator.matvec(q)
        tick()
        squares += space.inner(product, product) / length
        if not basis.rounding:
            outside = space.copy(product)
            project_out(basis, outside)
            space.axpy(1.0, outside, product)
        parts = parts + space.inners(q, product) / length
        if diagonal is not None:
            diagonal.know(q, product, 1.0 / length)
    return Known(basis, parts, squares, num_sketches + len(basis), skew)


def sketch_range(
    operator: LinearOperator[V], *, sketches: int, seed: int, tick: Tick
) -> tuple[Basis[V], np.ndarray, int]:
    """Q and R of H S = Q R for sketching vectors S, and the number of products that it took.

    R is (r, r), with r < sketches where H has no more rank, for which H S stands almost surely: vectors of signs are
    dependent with a chance of 2^(1 - n), and one in two of them is lost on an H that acts on u_1 + u_2 alone.
    Gram-Schmidt twice. Raises FloatingPointError where a product is not finite.
    """
    space, columns = operator.space, []
    basis, longest, taken = space.basis(), 0.0, 0
    for i in range(min(sketches, space.dimension)):
        y = operator.matvec(sketching_vector(operator, seed, i))
        taken += 1
        tick()
        longest = max(longest, space.norm(y))
        if not np.isfinite(longest):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        first = basis.inner(y)
        basis.subtract(first, y)
        again = basis.inner(y)
        basis.subtract(again, y)
        left = space.norm(y)
        if left <= 10 * space.epsilon * longest:
            break
        space.scale(1.0 / left, y)
        basis.append(y)
        columns.append(np.append(first + again, left))
    r = np.zeros((len(columns), len(columns)))
    for j, column in enumerate(columns):
        r[: j + 1, j] = column
    return basis, r, taken


def sketching_vector(operator: LinearOperator[V], seed: int, i: int) -> V:
    """The i-th sketching vector, uniform on the sphere of radius sqrt(n), drawn again wherever it is needed."""
    space = operator.space
    s = space.random("gaussian", seed=seed, index=_SKETCH_INDEX + i)
    space.scale(float(np.sqrt(space.dimension)) / space.norm(s), s)
    return s


def rescaled(square: float, *, rest: int) -> float:
    """The factor that gives a projected probe of this squared length its mean length, sqrt(rest)."""
    return rest / square if rest >= UNIFORM and square > 0 else 1.0


def sample(
    operator: LinearOperator[V],
    known: Known[V],
    *,
    probes: int,
    seed: int,
    diagonal: DiagonalSums[V] | None,
    tick: Tick,
) -> Draws:
    """One product a probe. Holds 3 vectors. Raises FloatingPointError where a product is not finite."""
    space = operator.space
    rest = space.dimension - len(known.basis)
    parts, squares, full = [], [], []
    for i in range(probes):
        g = space.random("rademacher", seed=seed, index=i)
        project_out(known.basis, g)
        product = operator.matvec(g)
        square = space.inner(product, product)
        if not np.isfinite(square):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        factor = rescaled(space.inner(g, g), rest=rest)
        # The part's own vector is z_b, not g_b: E_b does not commute with P.
        z = space.random("rademacher", seed=seed, index=i) if len(known.basis) else g
        whole = space.copy(product) if known.basis.rounding else product
        project_out(known.basis, product)
        parts.append(factor * space.inners(z, whole))
        squares.append(factor * space.inners(product, product))
        full.append(factor * square)
        if diagonal is not None:
            diagonal.draw(z, whole)
        tick()
    return Draws(np.array(parts), np.array(squares), np.array(full), space.inners(z, z))
