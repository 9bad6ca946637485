"""Tensors over a file that is mapped into memory: they take memory only while they are looked at.

Pages that were touched count as held by the process until they are let go of; what was written stays in the file.
"""

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from hesscli.errors import DoesNotFitError

# The maps in use, by the address of their first byte; a map goes with its last tensor.
_MAPS: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
_ALIGNED = 64  # bytes: what torch's own allocations start at
# Linux brings in the pages about the one that is looked at too, 64 KiB of them by default.
_WINDOW = 1 << 16


def mapped(
    wanted: Sequence[tuple[Sequence[int], torch.dtype]], folder: Path | None, *, what: str, field: str, remedy: str
) -> list[torch.Tensor]:
    """Tensors of zeros of these shapes and dtypes in one file, which has no name and goes with the last of them.

    `folder` None is the system's folder for temporary files. Raises DoesNotFitError(field) where the file system has
    no room: `what` cannot be put there, `remedy` says what to do.
    """
    sizes = [-(-prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED for shape, dtype in wanted]
    whole = max(sum(sizes), mmap.PAGESIZE)
    try:
        handle, name = tempfile.mkstemp(prefix="hess-", dir=folder or tempfile.gettempdir())
        try:
            # Without its blocks a mapped file ends the process, not the call, where the disk is full.
            os.posix_fallocate(handle, 0, whole)
            pages = mmap.mmap(handle, whole)
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError as error:
        text = f"{whole / 2**30:.2f} GiB of {what} cannot be put on disk ({error.strerror})"
        raise DoesNotFitError(field, text, remedy) from error
    everything = torch.frombuffer(pages, dtype=torch.uint8)
    _MAPS[everything.data_ptr()] = pages
    tensors, start = [], 0
    for (shape, dtype), size in zip(wanted, sizes, strict=True):
        tensors.append(everything[start : start + prod(shape) * dtype.itemsize].view(dtype).view(torch.Size(shape)))
        start += size
    return tensors


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in a file of `mapped`."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _MAPS


def release(*tensors: torch.Tensor) -> None:
    """Let go of the pages of tensors that are mapped; nothing is lost, and of other tensors nothing happens."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or not tensor.numel():
            continue
        first = tensor.untyped_storage().data_ptr()
        pages = _MAPS.get(first)
        if pages is None:
            continue
        start = tensor.data_ptr() - first
        spanned = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = start + spanned * tensor.element_size()
        start -= start % _WINDOW
        pages.madvise(mmap.MADV_DONTNEED, start, min(end + _WINDOW - end % _WINDOW, len(pages)) - start)
