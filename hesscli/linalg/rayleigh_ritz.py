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
    """||H y - value y||, from a product on y: an eigenvalue lies within it of the value. The sharper bound
    r^2 / gap is not given: it is void where an eigenvalue was missed, and no residual shows that."""
    asymmetry: float
    """||K - K^T|| / ||K|| of the projected matrix: the product's own error."""
    vectors: list[V]


def certify(operator: LinearOperator[V], vectors: Sequence[V]) -> Certified[V]:
    """Certify the span of k orthonormal vectors: k products, 3k vectors held beside the given ones.

    Parlett 1980, section 11. The basis may come from a noisy operator: what is certified does not.
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
    return Certified(values, residuals, asymmetry, [y for y, _ in pairs])


def _combine(operator: LinearOperator[V], vectors: Sequence[V], coefficients: np.ndarray) -> V:
    out = operator.space.zeros()
    for c, v in zip(coefficients, vectors, strict=True):
        operator.space.axpy(float(c), v, out)
    return out
