"""Rayleigh-Ritz on a few vectors with products of their own: values and bars that noise cannot hide."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.linalg.basis import Basis
from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")

TOGETHER = 4  # vectors multiplied in lockstep: most of what sharing saves, for eight vectors beside the basis


@dataclass(frozen=True, slots=True)
class Certified:
    """Eigenpairs of the restriction of H to a span, values rising."""

    values: np.ndarray
    residual_norms: np.ndarray
    """||H y - value y|| or a little more, from products of their own: an eigenvalue lies within it of the value."""
    asymmetry: float
    """||K - K^T|| / ||K|| of the projected matrix: the product's own error."""


def certify(operator: LinearOperator[V], basis: Basis[V]) -> Certified:
    """Certify the span of a basis of k vectors, and put its Ritz vectors in the basis's place, values rising.

    k products; 8 vectors held beside the basis. The vectors may come from a noisy operator: what is certified does
    not, and they need not be orthonormal. Parlett 1980, section 11. With H Y = Y C + R the residual of Y x is
    Y (C x - value x) + R x; of R only the lengths of its columns are kept, so |R x| is taken as sum |x_i| |R_i|,
    which is exact for vectors that are Ritz vectors already.

    Raises FloatingPointError where a product is not finite.
    """
    k = len(basis)
    gram = np.array([basis.inner(basis.vector(i)) for i in range(k)])
    inverse = np.linalg.inv(np.linalg.cholesky((gram + gram.T) / 2)).T
    projected, lengths = np.empty((k, k)), np.empty(k)
    for start in range(0, k, TOGETHER):
        places = range(start, min(start + TOGETHER, k))
        products = operator.matvecs([basis.vector(i) for i in places])
        for i, w in zip(places, products, strict=True):
            projected[:, i] = basis.inner(w)
            for _ in range(2):
                basis.subtract(inverse @ (inverse.T @ basis.inner(w)), w)
            lengths[i] = operator.space.norm(w)
    if not np.isfinite(lengths).all():
        msg = "a product is not finite"
        raise FloatingPointError(msg)
    values, small = np.linalg.eigh(inverse.T @ (projected + projected.T) / 2 @ inverse)
    x = inverse @ small
    within = inverse.T @ (projected @ x - gram @ x * values)  # coordinates of Y (C x - value x) in an orthonormal frame
    residuals = np.hypot(np.linalg.norm(within, axis=0), np.abs(x).T @ lengths)
    basis.recombine(x)
    size = float(np.linalg.norm(projected))
    asymmetry = float(np.linalg.norm(projected - projected.T)) / size if size > 0 else 0.0
    return Certified(values, residuals, asymmetry)


def eigenvalue_bars(certified: Certified, *, rest: tuple[float | None, float | None]) -> np.ndarray:
    """Half-widths (k,) of intervals that hold an eigenvalue each: r^2 / gap where the gap is established, else r.

    `rest` are bounds on the spectrum of P H P, with P the projection away from all k vectors; None where that end
    is not known. The whole spectrum lies within ||R|| of the values and of that rest, one to one (Weyl), so beside
    a value that is farther than ||R|| from all others there is one eigenvalue alone (Kato 1949, Temple 1928). Where
    an eigenvalue was missed there is no such gap, and no residual shows that: hence the bounds on the rest. An error
    e of the product is part of r, and moves a value by y.e, which r^2 / gap does not hold: the asymmetry shows it.
    """
    values, residual_norms = certified.values, certified.residual_norms
    low, high = (-np.inf if rest[0] is None else rest[0], np.inf if rest[1] is None else rest[1])
    apart = np.abs(values[:, None] - values[None, :])
    np.fill_diagonal(apart, np.inf)
    gaps = np.minimum(apart.min(axis=1), np.maximum(values - high, low - values))
    gaps -= np.linalg.norm(residual_norms)
    bars = residual_norms.copy()
    sharp = gaps > residual_norms
    error = certified.asymmetry * float(np.linalg.norm(values))
    bars[sharp] = np.minimum(residual_norms[sharp], residual_norms[sharp] ** 2 / gaps[sharp] + error)
    return bars
