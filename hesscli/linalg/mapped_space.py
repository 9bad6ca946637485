"""Vectors that lie in files: every verb looks at a piece at a time, and lets go of it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hesscli.linalg.basis import ParameterBasis, chunks
from hesscli.linalg.mapped import mapped, release
from hesscli.linalg.random import element_key, gaussian, rademacher
from hesscli.linalg.space import Distribution, ParameterSpace, ParameterVector, factors
from hesscli.linalg.storage import ROWS, BasisStorage

_PIECE = 1 << 18  # entries of a part that are looked at together: drawing them takes 40 bytes for each
_FIELD, _REMEDY = "model.offload_dir", "give a folder with more room, or choose fewer --params"


class MappedSpace(ParameterSpace):
    """The space of parameters whose vectors lie in `folder`, one file each; parts for other devices lie there.

    The files have no name: they go with their vectors, whatever happens. A vector holds no memory where nothing looks
    at it, and a piece of 2^18 entries under a verb, which costs a pass over the file. Raises DoesNotFitError where the
    folder has no room for a vector.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[torch.Tensor], folder: Path) -> None:
        super().__init__(names, parameters)
        self._folder = folder

    def zeros(self) -> ParameterVector:
        """A vector of zeros in a new file."""
        here = [i for i, device in enumerate(self.devices) if device.type == "cpu"]
        wanted = [(self.shapes[i], self.dtype) for i in here]
        parts = mapped(wanted, self._folder, what="vector", field=_FIELD, remedy=_REMEDY)
        found = dict(zip(here, parts, strict=True))
        return [
            found[i] if i in found else torch.zeros(shape, dtype=self.dtype, device=self.devices[i])
            for i, shape in enumerate(self.shapes)
        ]

    def random(self, distribution: Distribution, *, seed: int, index: int) -> ParameterVector:
        """The vector that `ParameterSpace.random` draws, piece by piece."""
        draw = rademacher if distribution == "rademacher" else gaussian
        out = self.zeros()
        for i, start, (piece,) in _pieces(out):
            key = element_key(seed, index, self.names[i])
            piece.copy_(draw(key, start, piece.numel(), device=piece.device))
        return out

    def copy(self, v: ParameterVector) -> ParameterVector:
        """A vector with the same entries and a file of its own."""
        out = self.zeros()
        for _, _, (a, b) in _pieces(v, out):
            b.copy_(a)
        return out

    def inners(self, u: ParameterVector, v: ParameterVector) -> np.ndarray:
        """The inner product parameter by parameter, (parameters,) float64."""
        sums = np.zeros(len(self.shapes))
        for i, _, (a, b) in _pieces(u, v):
            sums[i] += float((a * b).sum(dtype=torch.float64))
        if self.holds(sums):
            return sums
        sums[:] = 0.0
        for i, _, (a, b) in _pieces(u, v):
            sums[i] += float((a.double() * b.double()).sum())
        return sums

    def axpy(self, alpha: float, x: ParameterVector, y: ParameterVector) -> None:
        """Put `y + alpha x` into y."""
        for _, _, (a, b) in _pieces(x, y):
            b.add_(a, alpha=alpha)

    def scale(self, alpha: float, x: ParameterVector) -> None:
        """Put `alpha x` into x."""
        for factor in factors(alpha, self.dtype):
            for _, _, (piece,) in _pieces(x):
                piece.mul_(factor)

    def scale_parts(self, alphas: np.ndarray, x: ParameterVector) -> None:
        """Put `alpha_i x_i` into each parameter's part of x."""
        for i, _, (piece,) in _pieces(x):
            piece.mul_(float(alphas[i]))

    def multiply(self, u: ParameterVector, v: ParameterVector) -> ParameterVector:
        """The products entry by entry."""
        out = self.zeros()
        for _, _, (a, b, c) in _pieces(u, v, out):
            torch.mul(a, b, out=c)
        return out

    def restrict(self, v: ParameterVector, parts: Collection[int]) -> ParameterVector:
        """A copy of v that is zero outside the parameters with these indices."""
        out = self.zeros()
        for i, _, (a, b) in _pieces(v, out):
            if i in parts:
                b.copy_(a)
        return out

    def basis(self, *, exact: bool = False) -> ParameterBasis:
        """An empty basis; what `storage` would keep beside the parameters is kept in the folder."""
        storage = replace(self.storage, dtype="float32") if exact else self.storage
        if storage.place == "device":
            storage = replace(storage, place="disk")
        if storage.place == "disk" and storage.folder is None:
            storage = replace(storage, folder=self._folder)
        return _MappedBasis(self, storage)


class _MappedBasis(ParameterBasis):
    """A basis whose vectors come out as files."""

    def __init__(self, space: MappedSpace, storage: BasisStorage) -> None:
        super().__init__(space.numels, space.shapes, space.devices, space.dtype, storage, total=space.ranks.sum)
        self._space = space

    def vector(self, i: int) -> ParameterVector:
        """A copy of the i-th vector."""
        out, (block, row) = self._space.zeros(), divmod(i, ROWS)
        for place, start, (piece,) in _pieces(out):
            stored = self._blocks[block][place]
            piece.copy_(stored.read(slice(row, row + 1), slice(start, start + piece.numel()))[0])
        return out

    def combine(self, coefficients: np.ndarray) -> list[ParameterVector]:
        """The columns of V C; C is (m, k). Holds k new vectors."""
        out = [self._space.zeros() for _ in range(coefficients.shape[1])]
        for i, _ in enumerate(self._space.shapes):
            c = self._on(coefficients.T, i)
            flat = [vector[i].view(-1) for vector in out]
            for columns in chunks(self._space.numels[i], len(out)):
                total = c.new_zeros((len(out), columns.stop - columns.start))
                for places, rows, block in self._filled(i):
                    total.addmm_(c[:, places], block.read(rows, columns))
                for column, part in zip(flat, total, strict=True):
                    release(column[columns].copy_(part))
        return out


def _pieces(*vectors: ParameterVector) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
    """Of each part its place, then a first entry and the entries from it on of each vector; let go of after."""
    for i, parts in enumerate(zip(*vectors, strict=True)):
        flat = [part.view(-1) for part in parts]
        for start in range(0, flat[0].numel(), _PIECE):
            pieces = [part[start : start + _PIECE] for part in flat]
            yield i, start, pieces
            release(*pieces)
