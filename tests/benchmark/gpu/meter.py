"""Seconds and bytes of a piece of work on a device, out of memory being one of the answers."""

import gc
import time
from dataclasses import dataclass
from statistics import median

import torch
from live_bytes import LiveBytes

from hesscli.checkpoint.memory import available_bytes
from hesscli.run.faults import is_out_of_memory


@dataclass
class Measured:
    """What became of one piece of work; `result` is None where there is `reason`."""

    result: object = None
    seconds: float | None = None
    peak: int | None = None
    reason: str = ""


class Meter:
    """A device and what is left of the time; on the host the bytes are those of the tensors that are made."""

    def __init__(self, device, seconds):
        self.device, self._end = device, time.perf_counter() + seconds

    @property
    def left(self):
        """Seconds until nothing more is begun."""
        return self._end - time.perf_counter()

    @property
    def free(self):
        return available_bytes(self.device)

    def clear(self):
        """Give back what nobody refers to."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measured(self, make, *, repeats, known=()):
        """Make the work, run it once for its result and its peak, then `repeats` times for its seconds.

        `known` are tensors that count as held all the time, such as weights and vectors.
        """
        self.clear()
        if self.left < 0:
            return Measured(reason="not begun: the time is up")
        try:
            return self._measured(make, repeats, known)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Out here: the error held the frames that it passed through, and those hold their tensors.
        self.clear()
        return Measured(reason="out of memory")

    def _measured(self, make, repeats, known):
        held = sum(x.untyped_storage().nbytes() for x in known)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            work = make()
            result = work()
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            with LiveBytes(known) as count:
                work = make()
                result = work()
            peak = held + count.peak
        seconds = []
        while len(seconds) < repeats and (self.left > 0 or not seconds):
            self._wait()
            begun = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - begun)
        return Measured(result, median(seconds) if seconds else None, peak)

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def gib(count):
    """Bytes as text."""
    return "" if count is None else f"{count / 2**30:.2f}" if count >= 2**27 else f"{count / 2**30:.4f}"
