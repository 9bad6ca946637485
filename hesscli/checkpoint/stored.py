"""One weight where it lies in a file, read when it is wanted."""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from hesscli.errors import UnavailableError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_REMEDY = "leave the files alone while they are measured, and run again"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A whole weight in a safetensors file."""

    file: Path
    start: int
    shape: tuple[int, ...]
    stored: torch.dtype
    dtype: torch.dtype
    """What the model has it in; a wider one changes no digit."""
    modified: int
    """When the file was, in nanoseconds: a weight is not read from another."""

    def read(self) -> torch.Tensor:
        """The weight on the host, in memory of its own: one read of the file, and nothing is mapped.

        Raises UnavailableError where the file cannot be read or is another one by now.
        """
        return self._read(self.shape, self.start)

    def read_rows(self, rows: slice) -> torch.Tensor:
        """These rows of it, likewise."""
        row = prod(self.shape[1:]) * self.stored.itemsize
        return self._read((rows.stop - rows.start, *self.shape[1:]), self.start + rows.start * row)

    def _read(self, shape: tuple[int, ...], start: int) -> torch.Tensor:
        out = torch.empty(shape, dtype=self.stored)
        room = out.view(-1).view(torch.uint8).numpy().data
        try:
            with self.file.open("rb", buffering=0) as stream:
                if os.fstat(stream.fileno()).st_mtime_ns != self.modified:
                    what = f"{self.file.name} was changed while it was measured"
                    raise UnavailableError("weights", what, _REMEDY)
                done = 0
                while done < len(room):
                    count = os.preadv(stream.fileno(), [room[done:]], start + done)
                    if not count:
                        raise UnavailableError("weights", f"{self.file.name} is cut off", _REMEDY)
                    done += count
        except OSError as error:
            what = f"{self.file.name} cannot be read any more ({error.strerror})"
            raise UnavailableError("weights", what, _REMEDY) from error
        return out.to(self.dtype)


def stored_weight(file: Path, entry: tuple[str, tuple[int, ...], int], *, dtype: torch.dtype) -> StoredWeight:
    """The weight of this entry of the file's header."""
    stored, shape, start = entry
    return StoredWeight(file, start, shape, _DTYPES[stored], dtype, file.stat().st_mtime_ns)
