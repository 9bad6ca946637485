"""Take out of Ritz vectors what their basis's errors have put in: rounding, or another product's noise."""

from typing import TypeVar

import numpy as np

from hesscli.linalg.basis import Basis
from hesscli.linalg.operator import LinearOperator

V = TypeVar("V")

# Of the largest |y.Hy|. The errors have a little of every large eigenvector, which a product makes larger by
# their ratio of eigenvalues: below this share the product would do more harm than good.
SMALLEST = 1e-2


def refined(operator: LinearOperator[V], basis: Basis[V]) -> Basis[V]:
    """The vectors of `basis`, which are Ritz vectors, as H y: orthonormal, in the vectors' own dtype.

    Such errors are nearly orthogonal to everything and lie in the bulk, where H makes little of them: one step of
    the power method divides them by the ratio of the eigenvalue to the bulk's. One product for each vector; holds
    twice as many vectors again.
    """
    space = operator.space
    out, products = space.basis(exact=True), space.basis(exact=True)
    sizes = []
    for i in range(len(basis)):
        y = basis.vector(i)
        w = operator.matvec(y)
        sizes.append(abs(space.inner(y, w)))
        if (length := space.norm(w)) > 0:  # of unit length, for squares of a large or small matrix are beyond float32
            space.scale(1.0 / length, w)
        products.append(w)
    for i, size in enumerate(sizes):
        out.append(products.vector(i) if size >= SMALLEST * max(sizes) and size > 0 else basis.vector(i))
    gram = np.array([out.inner(out.vector(i)) for i in range(len(out))])
    lengths = np.sqrt(np.diag(gram))
    factor = np.linalg.cholesky((gram + gram.T) / 2 / np.outer(lengths, lengths))
    out.recombine((np.linalg.inv(factor) / lengths).T)
    return out
