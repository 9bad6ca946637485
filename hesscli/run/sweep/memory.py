"""Between two cells: the memory of the one is given back before the other is loaded, and its peak forgotten."""

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch


def release() -> None:
    """Free what the last run held, so that what fits by itself fits in a sweep, and its peak is its own.

    Linux forgets the peak of the resident set where `clear_refs` is told 5 (proc(5)); elsewhere a run's peak on the
    host is that of the sweep so far.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        with suppress(OSError):  # a container may refuse it
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
