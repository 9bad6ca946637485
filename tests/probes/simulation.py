"""Simulations over seeds on known spectra: a space whose algebra is as fast as numpy's, and what coverage is."""

import numpy as np
from minimal import language_model_spectrum

# Share of the seeds at which an interval of 95 % holds the truth, and its median width over that of a normal one
# with the estimator's true standard deviation.
LEAST, WIDEST = 0.93, 1.5
# Elsewhere coverage comes first: six or eight draws do not show that they have no long tail.
WIDEST_ELSEWHERE = 1.7
SEEDS = 400


class FastSpace:
    """Float64 arrays in parts that lie end to end."""

    epsilon = float(np.finfo(np.float64).eps)

    def __init__(self, sizes, *, kept="float64"):
        self.kept = kept
        self.starts = np.cumsum([0, *sizes[:-1]])
        self.sizes = np.array(sizes)
        self.dimension = int(self.sizes.sum())
        self.owner = np.repeat(np.arange(len(sizes)), sizes)

    def zeros(self):
        return np.zeros(self.dimension)

    def random(self, distribution, *, seed, index):
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        if distribution == "gaussian":
            return rng.standard_normal(self.dimension)
        return rng.integers(0, 2, self.dimension, dtype=np.int8) * 2.0 - 1.0

    def copy(self, v):
        return v.copy()

    def inners(self, u, v):
        return np.add.reduceat(u * v, self.starts)

    def inner(self, u, v):
        return float(u @ v)

    def norm(self, v):
        return float(np.sqrt(v @ v))

    def axpy(self, alpha, x, y):
        y += alpha * x

    def scale(self, alpha, x):
        x *= alpha

    def multiply(self, u, v):
        return u * v

    def restrict(self, v, parts):
        return v * np.isin(self.owner, list(parts))

    def basis(self, *, exact=False):
        return FastBasis(self.dimension, "float64" if exact else self.kept)


def _to_eight_bits(v):
    """As bfloat16 keeps them."""
    mantissas, exponents = np.frexp(v)
    return np.ldexp(np.rint(mantissas * 256) / 256, exponents)


def _to_codes(v):
    """As int8 with a scale for each 256 entries keeps them."""
    groups = np.pad(v, (0, -len(v) % 256)).reshape(-1, 256)
    scales = np.abs(groups).max(axis=1, keepdims=True) / 127
    return (np.rint(groups / np.maximum(scales, 1e-300)) * scales).ravel()[: len(v)]


_ROUND = {"float64": (lambda v: v, 0.0), "bfloat16": (_to_eight_bits, 2.0**-9), "int8": (_to_codes, 2.0**-7)}


class FastBasis:
    def __init__(self, dimension, kept):
        self._rows, self._length = np.zeros((4, dimension)), 0
        self._round, self.rounding = _ROUND[kept]

    def __len__(self):
        return self._length

    def append(self, v):
        if self._length == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self._length] = self._round(v)
        self._length += 1

    def vector(self, i):
        return self._rows[i].copy()

    def inner(self, v, *, first=0):
        return self._rows[first : self._length] @ v

    def subtract(self, coefficients, v, *, first=0):
        v -= coefficients @ self._rows[first : self._length]

    def subtract_then_inner(self, coefficients, v):
        self.subtract(coefficients, v)
        return self.inner(v)

    def combine(self, coefficients):
        return list((coefficients.T @ self._rows[: self._length]).copy())

    def recombine(self, coefficients):
        rows, self._length = coefficients.T @ self._rows[: self._length], 0
        for row in rows:
            self.append(row)


class FastOperator:
    """A dense symmetric matrix, counting its products."""

    def __init__(self, matrix, sizes, *, kept="float64"):
        self.matrix, self.space, self.num_matvecs = matrix, FastSpace(sizes, kept=kept), 0

    def matvec(self, v):
        self.num_matvecs += 1
        return self.matrix @ v

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


def operator_with(eigenvalues, *, sizes=None, seed=0, kept="float64"):
    """A dense operator with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return FastOperator((q * np.asarray(eigenvalues)) @ q.T, sizes or [n // 3, 1, n - n // 3 - 1], kept=kept)


SPECTRA = {
    "language model": language_model_spectrum(300),
    "flat": np.random.default_rng(1).normal(0, 1, 300),
    "near identity": 1 + 1e-2 * np.random.default_rng(2).normal(0, 1, 300),
}


def widest(spectrum):
    """The bound on the median relative width for a spectrum of this name."""
    return WIDEST if spectrum == "language model" else WIDEST_ELSEWHERE


def simulate(measure, truths, *, seeds=SEEDS):
    """Coverage and median relative width of each of the estimates that `measure(seed)` returns.

    An estimate has `value` and `ci`. The third array is the bias in its own standard errors.
    """
    estimates = [measure(seed) for seed in range(seeds)]
    values = np.array([[e.value for e in row] for row in estimates])
    ends = np.array([[e.ci for e in row] for row in estimates])
    covered = (ends[..., 0] <= truths) & (np.asarray(truths) <= ends[..., 1])
    spread = values.std(axis=0)
    widths = np.median(ends[..., 1] - ends[..., 0], axis=0) / (2 * 1.96 * spread)
    return covered.mean(axis=0), widths, (values.mean(axis=0) - truths) / spread * seeds**0.5
