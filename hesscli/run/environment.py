"""What a run ran on: versions and devices, no names of hosts, users or paths."""

import ctypes
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import psutil
import torch

from hesscli import __version__
from hesscli.distributed import ranks

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def environment(device: torch.device) -> dict[str, str]:
    """Versions of what can change a figure."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    together = {"processes": str(ranks().size)} if ranks().size > 1 else {}
    return together | {
        "hess": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "datasets": version("datasets"),
        "python": platform.python_version(),
        "device": f"{device.type} {name}".strip(),
        "threads": str(torch.get_num_threads()),
    }


def peak_bytes() -> dict[str, int]:
    """The most memory that a process of the run has held so far: resident set on the host, allocations on GPUs."""
    peaks = own_peak_bytes()
    each = ranks().each(peaks)
    return {place: max(one.get(place, 0) for one in each) for place in peaks}


def own_peak_bytes() -> dict[str, int]:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    peaks = {"cpu": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    return peaks | {f"cuda:{i}": torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())}


def held_bytes() -> dict[str, int]:
    """The memory that this process holds now: resident set on the host, allocations on GPUs."""
    held = {"cpu": int(psutil.Process().memory_info().rss)}
    return held | {f"cuda:{i}": torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count())}


def keep_freed_pages() -> None:
    """Ask the C library not to hand freed memory back: each graph would be faulted in anew, page by page.

    Measured on an 8M-parameter model on two cores: a product by double backward falls from 3.8 to 3.1 gradients.
    Where there is no `mallopt` (not glibc) nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)


def exact_arithmetic() -> None:
    """Switch off the reduced precision of float32 matrix products: TF32 leaves three digits of a product.

    Only the new names of the switches are touched: mixing them with the old ones raises.
    """
    for backend in _backends():
        backend.fp32_precision = "ieee"


def precisions() -> list[str]:
    """What the switches of `exact_arithmetic` are now: `ieee` is whole, `tf32` is not, `none` is torch's default."""
    return [str(backend.fp32_precision) for backend in _backends()]


@contextmanager
def arithmetic_restored() -> Iterator[None]:
    """What is done to the switches of `exact_arithmetic` within is undone afterwards: for a run inside other work."""
    before = precisions()
    try:
        yield
    finally:
        for backend, precision in zip(_backends(), before, strict=True):
            backend.fp32_precision = precision


def _backends() -> list[Any]:
    cudnn: Any = torch.backends.cudnn  # whose annotations lag behind what it has
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
