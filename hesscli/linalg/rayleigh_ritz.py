"""Rayleigh-Ritz on a few vectors with products of their own: values and residuals that noise cannot hide."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Certified(Generic[V]):
    """Eigenpairs of the restriction of H to the span of the given vectors, values rising."""

    values: np.ndarray
    residual_norms: np.ndarray
    """||H y - value y||, from a product on y: an eigenvalue lies within it of the value."""
    bars: np.ndarray
    """min(r, r^2 / gap), the bound of Kato and Temple where the gap is known; r at the ends of the set."""
    asymmetry: float
    """||K - K^T|| / ||K|| of the projected matrix: the product's own error."""
    vectors: list[V]


def certify(operator: LinearOperator[V], vectors: Sequence[V], *, num_low: int) -> Certified[V]:
    """Certify the span of k orthonormal vectors: k products, 3k vectors held beside the given ones.

    The first `num_low` values belong to the low end of the spectrum, the others to the high end; between the
    two lies all that was not looked at, so no gap is known there.

    ALGORITHMS: "noisy Krylov, accurate Rayleigh-Ritz"; Parlett 1980, section 11 for the bounds.
    """
    space = operator.space
    products = operator.matvecs(vectors)
    k = len(vectors)
    projected = np.array([[space.inner(u, w) for w in products] for u in vectors])
    gram = np.array([[space.inner(u, v) for v in vectors] for u in vectors])
    # The vectors are orthonormal up to rounding; a Cholesky factor of the Gram matrix takes out the rest.
    inverse = np.linalg.inv(np.linalg.cholesky(gram)).T
    values, small = np.linalg.eigh(inverse.T @ (projected + projected.T) / 2 @ inverse)
    rotation = inverse @ small
    pairs = [(_combine(operator, vectors, c), _combine(operator, products, c)) for c in rotation.T]
    residuals = np.empty(k)
    for i, (y, w) in enumerate(pairs):
        space.axpy(-float(values[i]), y, w)
        residuals[i] = space.norm(w)
    size = float(np.linalg.norm(projected))
    asymmetry = float(np.linalg.norm(projected - projected.T)) / size if size > 0 else 0.0
    return Certified(values, residuals, _bars(values, residuals, num_low), asymmetry, [y for y, _ in pairs])


def _combine(operator: LinearOperator[V], vectors: Sequence[V], coefficients: np.ndarray) -> V:
    out = operator.space.zeros()
    for c, v in zip(coefficients, vectors, strict=True):
        operator.space.axpy(float(c), v, out)
    return out


def _bars(values: np.ndarray, residuals: np.ndarray, num_low: int) -> np.ndarray:
    """min(r, r^2 / (gap - r)); the innermost pair of each end has no known gap and keeps r."""
    bars = residuals.copy()
    for end in (np.arange(num_low), np.arange(num_low, len(values))[::-1]):  # from the outside inwards
        for place, i in enumerate(end[:-1]):
            neighbours = [end[place + 1]] + ([end[place - 1]] if place else [])
            gap = min(abs(values[i] - values[j]) - residuals[j] for j in neighbours)
            if gap > residuals[i]:
                bars[i] = min(bars[i], residuals[i] ** 2 / (gap - residuals[i]))
    return bars
