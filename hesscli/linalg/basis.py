"""An append-only set of vectors: where a Krylov method's memory is bought."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch

V = TypeVar("V")
_ROWS = 16  # rows are allocated this many at a time, so a run that stops early has not paid for its budget
_COLUMNS = 1 << 18  # partial sums of this length are taken in the vectors' dtype, then added in float64


class Basis(Protocol[V]):
    """Vectors v_0 .. v_{m-1}; V is the matrix that has them as columns."""

    def __len__(self) -> int:
        """Number of vectors held."""

    def append(self, v: V) -> None:
        """Add a copy of v."""

    def vector(self, i: int) -> V:
        """A copy of the i-th vector."""

    def inner(self, v: V) -> np.ndarray:
        """V^T v, (m,) float64, in one reduction."""

    def subtract(self, coefficients: np.ndarray, v: V) -> None:
        """Put `v - V c` into v; c is (m,)."""

    def combine(self, coefficients: np.ndarray) -> list[V]:
        """The columns of V C; C is (m, k)."""


def project_out(basis: Basis[V], v: V) -> None:
    """Put `v - V V^T v` into v, twice, which leaves rounding errors only."""
    if len(basis):
        for _ in range(2):
            basis.subtract(basis.inner(v), v)


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
    """A basis over parameters: for each parameter, blocks of rows (rows, numel) on its own device."""

    def __init__(
        self,
        numels: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
        devices: Sequence[torch.device],
        dtype: torch.dtype,
    ) -> None:
        self._numels, self._shapes, self._devices, self._dtype = numels, shapes, devices, dtype
        self._blocks: list[list[torch.Tensor]] = [[] for _ in numels]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, v: list[torch.Tensor]) -> None:
        """Add a copy of v."""
        block, row = divmod(self._length, _ROWS)
        for i, part in enumerate(v):
            if row == 0:
                shape = (_ROWS, self._numels[i])
                self._blocks[i].append(torch.empty(shape, dtype=self._dtype, device=self._devices[i]))
            self._blocks[i][block][row].copy_(part.reshape(-1))
        self._length += 1

    def vector(self, i: int) -> list[torch.Tensor]:
        """A copy of the i-th vector."""
        block, row = divmod(i, _ROWS)
        return [b[block][row].clone().reshape(s) for b, s in zip(self._blocks, self._shapes, strict=True)]

    def _filled(self, part: int) -> list[tuple[slice, torch.Tensor]]:
        """The rows in use of one parameter, with their places in the basis."""
        out = []
        for i, block in enumerate(self._blocks[part]):
            rows = min(_ROWS, self._length - i * _ROWS)
            out.append((slice(i * _ROWS, i * _ROWS + rows), block[:rows]))
        return out

    def inner(self, v: list[torch.Tensor]) -> np.ndarray:
        """V^T v, (m,) float64; one pass over the basis, one transfer per device."""
        if not self._length:
            return np.zeros(0)
        sums = []
        for i, part in enumerate(v):
            flat = part.reshape(-1)
            total = torch.zeros(self._length, dtype=torch.float64, device=part.device)
            for rows, block in self._filled(i):
                for start in range(0, flat.numel(), _COLUMNS):
                    columns = slice(start, start + _COLUMNS)
                    total[rows] += torch.mv(block[:, columns], flat[columns])
            sums.append(total)
        return to_host(sums).sum(axis=0)

    def subtract(self, coefficients: np.ndarray, v: list[torch.Tensor]) -> None:
        """Put `v - V c` into v; c is (m,)."""
        for i, part in enumerate(v):
            flat = part.view(-1)
            c = torch.from_numpy(np.ascontiguousarray(coefficients)).to(part.device, self._dtype)
            for rows, block in self._filled(i):
                flat.addmv_(block.T, c[rows], alpha=-1.0)

    def combine(self, coefficients: np.ndarray) -> list[list[torch.Tensor]]:
        """The columns of V C; C is (m, k). Holds k new vectors."""
        out: list[list[torch.Tensor]] = [[] for _ in range(coefficients.shape[1])]
        for i, shape in enumerate(self._shapes):
            c = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(self._devices[i], self._dtype)
            parts = sum((c[:, rows] @ block for rows, block in self._filled(i)), start=c.new_zeros(1))
            for column, part in zip(out, parts, strict=True):
                column.append(part.clone().reshape(shape))
        return out
