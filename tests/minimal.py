"""The least that an algorithm may ask of vectors: parts on different places that refuse to be joined."""

import numpy as np

from hesscli.linalg.random import element_key, gaussian, rademacher


class Part:
    """An array at a place. It meets parts of its own place only, and nobody reads its entries but the space."""

    def __init__(self, place, entries):
        self.place, self._entries = place, entries

    def with_(self, other, operation):
        if self.place != other.place:
            raise AssertionError(f"{self.place} and {other.place} were joined")
        return operation(self._entries, other._entries)

    def __array__(self, *_args, **_kwargs):
        raise AssertionError("a part was turned into an array")

    def __len__(self):
        raise AssertionError("a part was asked for its length")


class Vector:
    """A vector of parts; not a list, so that code which believes in lists of tensors fails."""

    def __init__(self, parts):
        self._parts = tuple(parts)


class MinimalSpace:
    """Float64 vectors in parts of the given sizes."""

    epsilon = float(np.finfo(np.float64).eps)

    def __init__(self, sizes):
        self.sizes = sizes
        self.dimension = sum(sizes)

    def zeros(self):
        return Vector(Part(i, np.zeros(s)) for i, s in enumerate(self.sizes))

    def random(self, distribution, *, seed, index):
        import torch

        draw = rademacher if distribution == "rademacher" else gaussian
        parts = [
            draw(element_key(seed, index, str(i)), 0, s, device=torch.device("cpu")).double().numpy()
            for i, s in enumerate(self.sizes)
        ]
        return Vector(Part(i, p) for i, p in enumerate(parts))

    def copy(self, v):
        return Vector(Part(p.place, p._entries.copy()) for p in v._parts)

    def inners(self, u, v):
        return np.array([a.with_(b, np.dot) for a, b in zip(u._parts, v._parts, strict=True)])

    def inner(self, u, v):
        return float(self.inners(u, v).sum())

    def norm(self, v):
        return self.inner(v, v) ** 0.5

    def axpy(self, alpha, x, y):
        for a, b in zip(x._parts, y._parts, strict=True):
            b._entries += alpha * a.with_(b, lambda p, _q: p)

    def scale(self, alpha, x):
        for p in x._parts:
            p._entries *= alpha

    def scale_parts(self, alphas, x):
        for alpha, p in zip(alphas, x._parts, strict=True):
            p._entries *= float(alpha)

    def multiply(self, u, v):
        return Vector(Part(a.place, a.with_(b, np.multiply)) for a, b in zip(u._parts, v._parts, strict=True))

    def restrict(self, v, parts):
        return Vector(Part(p.place, p._entries * (p.place in parts)) for p in v._parts)

    def basis(self, *, exact=False):
        return MinimalBasis(self)

    def joined(self, v):
        """For tests alone: the entries in a row."""
        return np.concatenate([p._entries for p in v._parts])

    def split(self, entries):
        """For tests alone: the reverse."""
        ends = np.cumsum(self.sizes)[:-1]
        return Vector(Part(i, p.copy()) for i, p in enumerate(np.split(np.asarray(entries, float), ends)))


class MinimalBasis:
    """Rows of each place by themselves."""

    rounding = 0.0

    def __init__(self, space):
        self._rows, self._length = [np.empty((16, size)) for size in space.sizes], 0

    def __len__(self):
        return self._length

    def append(self, v):
        for place, part in enumerate(v._parts):
            if self._length == len(self._rows[place]):
                self._rows[place] = np.concatenate([self._rows[place], np.empty_like(self._rows[place])])
            self._rows[place][self._length] = part._entries
        self._length += 1

    def _filled(self, first=0):
        return [rows[first : self._length] for rows in self._rows]

    def vector(self, i):
        return Vector(Part(place, rows[i].copy()) for place, rows in enumerate(self._filled()))

    def inner(self, v, *, first=0):
        return sum(rows @ part._entries for rows, part in zip(self._filled(first), v._parts, strict=True))

    def subtract(self, coefficients, v, *, first=0):
        for rows, part in zip(self._filled(first), v._parts, strict=True):
            part._entries -= np.asarray(coefficients) @ rows

    def subtract_then_inner(self, coefficients, v):
        self.subtract(coefficients, v)
        return self.inner(v)

    def combine(self, coefficients):
        return [Vector(Part(p, rows.T @ c) for p, rows in enumerate(self._filled())) for c in coefficients.T]

    def recombine(self, coefficients):
        self._rows = [coefficients.T @ rows for rows in self._filled()]
        self._length = coefficients.shape[1]


class DenseOperator:
    """A dense symmetric matrix on a minimal space, counting its products."""

    def __init__(self, matrix, space):
        self.matrix, self.space, self.num_matvecs = matrix, space, 0

    def matvec(self, v):
        self.num_matvecs += 1
        return self.space.split(self.matrix @ self.space.joined(v))

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


class DiagonalOperator:
    """These eigenvalues on the coordinates; `eta` and `relative` are lengths of the error of a product."""

    def __init__(self, eigenvalues, *, eta=0.0, relative=0.0, seed=0, space=None):
        n = len(eigenvalues)
        self.eigenvalues = np.asarray(eigenvalues, float)
        self.space = space or MinimalSpace([n // 3, 1, n - n // 3 - 1])
        self.num_matvecs, self._eta, self._relative = 0, eta, relative
        self._rng = np.random.default_rng(seed)

    def matvec(self, v):
        self.num_matvecs += 1
        x = self.space.joined(v)
        w = self.eigenvalues * x
        if self._eta or self._relative:
            error = self._rng.standard_normal(len(x))
            length = self._eta * np.linalg.norm(x) + self._relative * np.linalg.norm(w)
            w = w + length / np.linalg.norm(error) * error
        return self.space.split(w)

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


def with_spectrum(eigenvalues, *, seed=0, sizes=None):
    """A dense operator with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return DenseOperator((q * np.asarray(eigenvalues)) @ q.T, MinimalSpace(sizes or [n // 3, 1, n - n // 3 - 1]))


def language_model_spectrum(n=400, *, seed=0):
    """Twenty outliers up to 500, five negative ones down to -50, a bulk of width 1e-3 to 1 around zero."""
    rng = np.random.default_rng(seed)
    bulk = rng.normal(0, 1e-3, n - 25)
    bulk[: n // 10] = rng.laplace(0, 0.03, n // 10)
    bulk[: n // 100] = rng.laplace(0, 0.3, n // 100)
    return np.concatenate([500 * np.arange(1, 21) ** -1.2, [-50, -28, -19, -12, -8], bulk])
