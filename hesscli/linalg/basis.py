"""An append-only set of vectors: where a Krylov method's memory is bought."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch

from hesscli.linalg.mapped import release
from hesscli.linalg.storage import GROUP, ROWS, BasisStorage, StoredBlock, allocate

V = TypeVar("V")
# Partial sums of this length are taken in the vectors' dtype, then added in float64; what is kept elsewhere or
# narrower comes over in pieces of sixteen rows of it.
_COLUMNS = 1 << 18
# On a processor such a piece, 4 MiB wide open, is multiplied before it leaves the cache: a pass over rows in bfloat16
# then takes 1.3 times as long as one in float32, and 1.8 times with the pieces above.
_HOST_COLUMNS = 1 << 16
_CACHED = 1 << 21  # entries of a basis, 8 MiB: read twice in a row, they come from the cache the second time
# On a GPU, which has no such cache, each piece costs five launches of 5 to 10 us for every sixteen rows: at 1.7B
# parameters and 80 rows 650,000 with the pieces of a host, and 65,000 with these, of 128 MiB.
_AT_ONCE = 1 << 25


class Basis(Protocol[V]):
    """Vectors v_0 .. v_{m-1}; V is the matrix that has them as columns."""

    @property
    def rounding(self) -> float:
        """The relative error that keeping a vector has put into it, beyond its own dtype's."""

    def __len__(self) -> int:
        """Number of vectors held."""

    def append(self, v: V) -> None:
        """Add a copy of v."""

    def vector(self, i: int) -> V:
        """A copy of the i-th vector."""

    def inner(self, v: V, *, first: int = 0) -> np.ndarray:
        """V^T v, (m,) float64, in one reduction; with `first`, of the vectors from that one on alone."""

    def subtract(self, coefficients: np.ndarray, v: V, *, first: int = 0) -> None:
        """Put `v - V c` into v; c is (m,), and `first` as for `inner`."""

    def subtract_then_inner(self, coefficients: np.ndarray, v: V) -> np.ndarray:
        """Put `v - V c` into v, and return V^T v, (m,) float64: what both do, in one pass over the basis."""

    def combine(self, coefficients: np.ndarray) -> list[V]:
        """The columns of V C; C is (m, k)."""

    def recombine(self, coefficients: np.ndarray) -> None:
        """Put the columns of V C in the place of V; C is (m, k) with k at most m."""


def project_out(basis: Basis[V], v: V) -> None:
    """Put `v - V V^T v` into v, twice, which leaves rounding errors only."""
    if len(basis):
        basis.subtract(basis.subtract_then_inner(basis.inner(v), v), v)


def to_host(scalars: Sequence[torch.Tensor]) -> np.ndarray:
    """Zero-dimensional or equal 1-d tensors as one float64 array, with one transfer per device."""
    devices = {s.device for s in scalars}
    out: list[np.ndarray | None] = [None] * len(scalars)
    for device in devices:
        chosen = [i for i, s in enumerate(scalars) if s.device == device]
        stacked = torch.stack([scalars[i].double() for i in chosen]).cpu().numpy()
        for i, value in zip(chosen, stacked, strict=True):
            out[i] = value
    return np.asarray(out, dtype=np.float64)


class ParameterBasis:
    """A basis over parameters: for each parameter, blocks of rows, kept as `storage` says."""

    def __init__(
        self,
        numels: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
        devices: Sequence[torch.device],
        dtype: torch.dtype,
        storage: BasisStorage,
        *,
        total: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """`total` takes this process's sums to those over all that hold the vectors together."""
        self._numels, self._shapes, self._devices, self._dtype = numels, shapes, devices, dtype
        self._storage, self._total = storage, total
        self._blocks: list[list[StoredBlock]] = []  # by block of rows, then by parameter
        self._length = 0

    @property
    def rounding(self) -> float:
        """That of the storage."""
        return self._storage.rounding

    def __len__(self) -> int:
        return self._length

    def append(self, v: list[torch.Tensor]) -> None:
        """Add a copy of v."""
        block, row = divmod(self._length, ROWS)
        if row == 0:
            self._blocks.append(self._allocated(self._storage.rows_after(self._length)))
        elif row == len(self._blocks[block][0].codes):  # beyond the capacity: on in a block of the usual size
            short, self._blocks[block] = self._blocks[block], self._allocated(ROWS)
            for old, new in zip(short, self._blocks[block], strict=True):
                new.take(old)
        for part, stored in zip(v, self._blocks[block], strict=True):
            stored.write(row, slice(0, part.numel()), part.reshape(1, -1))
            release(part)
        self._length += 1

    def _allocated(self, rows: int) -> list[StoredBlock]:
        return allocate(self._numels, self._devices, self._dtype, self._storage, rows=rows)

    def vector(self, i: int) -> list[torch.Tensor]:
        """A copy of the i-th vector."""
        out = [torch.empty(s, dtype=self._dtype, device=d) for s, d in zip(self._shapes, self._devices, strict=True)]
        block, row = divmod(i, ROWS)
        for part, stored in zip(out, self._blocks[block], strict=True):
            for columns in chunks(part.numel(), 1):
                part.view(-1)[columns] = stored.read(slice(row, row + 1), columns)[0]
        return out

    def _filled(self, part: int, first: int = 0) -> list[tuple[slice, slice, StoredBlock]]:
        """The blocks of one parameter with vectors from `first` on: those vectors' places, and their rows."""
        found = []
        for start, blocks in zip(range(0, self._length, ROWS), self._blocks, strict=True):
            low, high = max(start, first), min(start + ROWS, self._length)
            if low < high:
                found.append((slice(low - first, high - first), slice(low - start, high - start), blocks[part]))
        return found

    def inner(self, v: list[torch.Tensor], *, first: int = 0) -> np.ndarray:
        """V^T v, (m,) float64; one pass over the vectors, one transfer per device."""
        if first >= self._length:
            return np.zeros(0)
        sums = []
        for i, part in enumerate(v):
            flat = part.reshape(-1)
            total = torch.zeros(self._length - first, dtype=torch.float64, device=part.device)
            for places, rows, block in self._filled(i, first):
                for columns in _pieces(flat):
                    total[places] += torch.mv(block.read(rows, columns), flat[columns])
            sums.append(total)
            release(part)
        return self._total(to_host(sums).sum(axis=0))

    def subtract(self, coefficients: np.ndarray, v: list[torch.Tensor], *, first: int = 0) -> None:
        """Put `v - V c` into v; c is (m,)."""
        for i, part in enumerate(v):
            flat = part.view(-1)
            c = self._on(coefficients, i)
            for places, rows, block in self._filled(i, first):
                for columns in _pieces(flat):
                    flat[columns].addmv_(block.read(rows, columns).T, c[places], alpha=-1.0)
            release(part)

    def subtract_then_inner(self, coefficients: np.ndarray, v: list[torch.Tensor]) -> np.ndarray:
        """Put `v - V c` into v, and return V^T v, (m,) float64; one pass over the basis.

        By columns few enough for their rows to be read again before they leave the processor's cache.
        """
        if not self._length:
            return np.zeros(0)
        sums = []
        for i, part in enumerate(v):
            flat, c, filled = part.view(-1), self._on(coefficients, i), self._filled(i)
            total = torch.zeros(self._length, dtype=torch.float64, device=part.device)
            most = (_CACHED if part.device.type == "cpu" else _AT_ONCE) // self._length
            for columns in chunks(flat.numel(), 1, most=most):
                read = [(places, block.read(rows, columns)) for places, rows, block in filled]
                for places, values in read:
                    flat[columns].addmv_(values.T, c[places], alpha=-1.0)
                for places, values in read:
                    total[places] += torch.mv(values, flat[columns])
            sums.append(total)
            release(part)
        return self._total(to_host(sums).sum(axis=0))

    def combine(self, coefficients: np.ndarray) -> list[list[torch.Tensor]]:
        """The columns of V C; C is (m, k). Holds k new vectors."""
        out: list[list[torch.Tensor]] = [[] for _ in range(coefficients.shape[1])]
        for i, shape in enumerate(self._shapes):
            c = self._on(coefficients.T, i)
            parts = c.new_zeros((len(out), self._numels[i]))
            for places, rows, block in self._filled(i):
                for columns in chunks(self._numels[i], 1):
                    parts[:, columns].addmm_(c[:, places], block.read(rows, columns))
            for column, part in zip(out, parts, strict=True):
                column.append(part.clone().reshape(shape))
        return out

    def recombine(self, coefficients: np.ndarray) -> None:
        """Put the columns of V C, at most m of them, in the place of V.

        In place, by blocks of columns: what is held beside the basis does not grow with the parameters.
        """
        kept = coefficients.shape[1]
        for i, numel in enumerate(self._numels):
            c = self._on(coefficients.T, i)
            filled = self._filled(i)
            for columns in chunks(numel, self._length):
                old = torch.cat([block.read(rows, columns) for _, rows, block in filled])
                new = c @ old
                for places, _, block in filled:
                    part = new[places]
                    if len(part):
                        block.write(0, columns, part)
        self._length = kept
        del self._blocks[-(-kept // ROWS) :]

    def _on(self, coefficients: np.ndarray, part: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(coefficients)).to(self._devices[part], self._dtype)


def _pieces(flat: torch.Tensor) -> Iterator[slice]:
    """Columns of one parameter that sixteen rows are read in."""
    return chunks(flat.numel(), 1, most=_HOST_COLUMNS if flat.device.type == "cpu" else None)


def chunks(numel: int, rows: int, *, most: int | None = None) -> Iterator[slice]:
    """Columns in pieces that `rows` rows of bound the scratch, each starting at a whole group; `most` bounds them."""
    width = _COLUMNS // -(-rows // ROWS)
    width = max(GROUP, (width if most is None else min(width, most)) // GROUP * GROUP)
    for start in range(0, numel, width):
        yield slice(start, min(start + width, numel))
