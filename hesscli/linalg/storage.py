"""Where a basis keeps its rows, and how wide: on the parameters' devices, on the host, or in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import pad

from hesscli.linalg.mapped import is_mapped, mapped, release

Place = Literal["device", "host", "disk"]
StoredDtype = Literal["float32", "bfloat16", "int8"]

ROWS = 16  # rows are allocated this many at a time, so a run that stops early has not paid for its budget
# Entries that share a scale in int8. The rounding errors are nearly orthogonal to everything, at a level of
# 2^-8 / sqrt(n); one scale a row would leave a vector with a few large entries no digits for the rest.
GROUP = 256


@dataclass(frozen=True, slots=True)
class BasisStorage:
    """How vectors are kept. `float32` stands for the vectors' own dtype, which a float64 model has wider."""

    place: Place = "device"
    dtype: StoredDtype = "float32"
    folder: Path | None = None
    """For `disk`; None is the system's folder for temporary files."""
    capacity: int | None = None
    """A number of vectors at which no more memory is taken ahead of need; None where none is known."""

    def rows_after(self, length: int) -> int:
        """How many rows to allocate for a basis that has filled `length` of them: `ROWS`, or what capacity leaves."""
        room = ROWS if self.capacity is None else self.capacity - length
        return min(ROWS, room) if room > 0 else ROWS

    def vector_bytes(self, numel: int, dtype: torch.dtype) -> int:
        """What one vector of `numel` entries of this dtype takes."""
        if self.dtype == "int8":
            return -(-numel // GROUP) * (GROUP + 4)
        return numel * (2 if self.dtype == "bfloat16" else dtype.itemsize)

    @property
    def rounding(self) -> float:
        """The relative error of a vector that was kept, beyond its own dtype's: sets the residual of a Ritz vector."""
        return {"float32": 0.0, "bfloat16": 2.0**-9, "int8": 2.0**-7}[self.dtype]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """Rows of one parameter. They are read and written in columns that start at multiples of `GROUP`."""

    codes: torch.Tensor
    scales: torch.Tensor | None
    device: torch.device
    dtype: torch.dtype

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """Rows on the parameter's device in the vectors' dtype: a view where nothing is to be done.

        Of rows on disk a copy, so that no more of the file is in memory than is looked at.
        """
        part = self.codes[rows, columns]
        if self.scales is None:
            found = part.to(self.device, self.dtype, copy=is_mapped(part))
            release(part)
            return found
        first, last = columns.start // GROUP, -(-columns.stop // GROUP)
        codes = self.codes[rows, first * GROUP : last * GROUP].to(self.device).to(self.dtype)
        scales = self.scales[rows, first:last].to(self.device, self.dtype)
        wide = codes.view(len(codes), -1, GROUP).mul_(scales[..., None]).view(len(codes), -1)
        release(self.codes[rows, first * GROUP : last * GROUP], self.scales[rows, first:last])
        return wide[:, : columns.stop - columns.start]

    def take(self, other: "StoredBlock") -> None:
        """Put the rows of a shorter block into the first rows, as they are."""
        self.codes[: len(other.codes)].copy_(other.codes)
        if self.scales is not None and other.scales is not None:
            self.scales[: len(other.scales)].copy_(other.scales)

    def write(self, first_row: int, columns: slice, values: torch.Tensor) -> None:
        """Put values (rows, columns) into rows `first_row` and on, rounded to the nearest."""
        rows = slice(first_row, first_row + len(values))
        if self.scales is None:
            release(self.codes[rows, columns].copy_(values))
            return
        first, last = columns.start // GROUP, -(-columns.stop // GROUP)
        missing = (last - first) * GROUP - values.shape[1]
        groups = pad(values, (0, missing)).view(len(values), -1, GROUP)
        scales = groups.abs().amax(dim=2).float() / 127
        codes = (groups / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round_()
        release(self.codes[rows, first * GROUP : last * GROUP].copy_(codes.view(len(values), -1)))
        release(self.scales[rows, first:last].copy_(scales))


def allocate(
    numels: Sequence[int], devices: Sequence[torch.device], dtype: torch.dtype, storage: BasisStorage, *, rows: int
) -> list[StoredBlock]:
    """So many rows for each parameter. On disk: one file for all of them, which nothing but the rows refers to.

    Raises DoesNotFitError where the file system has no room.
    """
    wanted = []
    for numel in numels:
        groups = -(-numel // GROUP)
        if storage.dtype == "int8":
            wanted += [((rows, groups * GROUP), torch.int8), ((rows, groups), torch.float32)]
        else:
            wanted.append(((rows, numel), torch.bfloat16 if storage.dtype == "bfloat16" else dtype))
    each = len(wanted) // len(numels)
    if storage.place == "disk":
        remedy = "set TMPDIR to a folder with room, or lower --steps"
        tensors = mapped(wanted, storage.folder, what="basis", field="estimator.basis", remedy=remedy)
    else:
        homes = [d if storage.place == "device" else torch.device("cpu") for d in devices for _ in range(each)]
        tensors = [torch.empty(s, dtype=t, device=d) for (s, t), d in zip(wanted, homes, strict=True)]
    return [
        StoredBlock(tensors[i * each], tensors[i * each + 1] if each == 2 else None, device, dtype)
        for i, device in enumerate(devices)
    ]
