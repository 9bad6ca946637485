"""Small symmetric tridiagonal problems, float64 on the host. No torch."""

import numpy as np
from scipy.linalg import eigh_tridiagonal, solve_banded


def ritz_decomposition(alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (m,) in rising order and eigenvectors (m, m) as columns of the Lanczos matrix T.

    alphas is (m,), betas (m - 1,) the off-diagonal.
    """
    alphas, betas = np.asarray(alphas, dtype=np.float64), np.asarray(betas, dtype=np.float64)
    if alphas.size == 1:
        return alphas.copy(), np.ones((1, 1))
    # MRRR ("stemr") can return vectors that are not orthogonal on graded T; divide and conquer does not.
    return eigh_tridiagonal(alphas, betas, lapack_driver="stev")


def gauss_radau(alphas: np.ndarray, betas: np.ndarray, x: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, (m + 1,) each, of the quadrature that has a node at x.

    alphas is (m,), betas (m,) with the last one linking to the step that was not taken. Golub and Meurant
    2010, section 6.2: with (T - x I) d = beta_m^2 e_m the extended matrix ends in x + d_m.
    """
    alphas, betas = np.asarray(alphas, dtype=np.float64), np.asarray(betas, dtype=np.float64)
    m = alphas.size
    shifted = np.zeros((3, m))
    shifted[0, 1:] = betas[:-1]
    shifted[1] = alphas - x
    shifted[2, :-1] = betas[:-1]
    right = np.zeros(m)
    right[-1] = betas[-1] ** 2
    try:
        last = x + solve_banded((1, 1), shifted, right)[-1]
    except np.linalg.LinAlgError:  # x is an eigenvalue of T already: a nudge by one part in 1e14 is not
        return gauss_radau(alphas, betas, x + 1e-14 * max(1e-300, float(np.abs(alphas).max() + betas.max())))
    if not np.isfinite(last):
        return gauss_radau(alphas, betas, x + 1e-14 * max(1e-300, float(np.abs(alphas).max() + betas.max())))
    nodes, vectors = ritz_decomposition(np.append(alphas, last), betas)
    return nodes, vectors[0] ** 2


def stieltjes_bounds(alphas: np.ndarray, betas: np.ndarray, x: float) -> tuple[float, float]:
    """Bounds low <= psi(x-) <= psi(x) <= high on the distribution function of the quadrature's measure.

    Chebyshev, Markov and Stieltjes: with the node prescribed at x, the weight below x and that weight plus
    the weight at x. Sharp, given the 2m moments that T holds. Shapes as for `gauss_radau`.
    """
    if betas[-1] == 0.0:  # the Krylov space is invariant: T's own quadrature is the measure
        nodes, vectors = ritz_decomposition(alphas, betas[:-1])
        weights = vectors[0] ** 2
        return float(weights[nodes < x].sum()), float(weights[nodes <= x].sum())
    nodes, weights = gauss_radau(alphas, betas, x)
    at = int(np.argmin(np.abs(nodes - x)))
    low = float(weights[:at].sum())
    return low, min(1.0, low + float(weights[at]))
