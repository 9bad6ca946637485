"""The way of weights from the host to an accelerator: through pinned memory, on a stream of its own."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_BUFFER = 1 << 26  # bytes of each of two; a copy of so many takes milliseconds, and to start one microseconds


@dataclass(frozen=True, slots=True, eq=False)
class Arriving:
    """Tensors on a device that may be on their way there; `arrived` is for the thread that computes with them."""

    tensors: Sequence[torch.Tensor]
    waits: Sequence[Callable[[], None]]

    def arrived(self) -> Sequence[torch.Tensor]:
        """The tensors, for whatever the device is asked to compute from here on; the host does not wait."""
        for wait in self.waits:
            wait()
        return self.tensors


class Staging:
    """Brings tensors of the host to devices while those compute; for one thread at a time.

    To an accelerator piece by piece through two pinned buffers: one is filled while the other is copied, and a buffer
    is filled again when its copy is done. Holds 128 MiB for each device, from the first tensor on. Where memory cannot
    be pinned it goes through buffers that are not, and the copies wait. To the host there is no way: nothing is copied.
    """

    def __init__(self) -> None:
        self._ways: dict[torch.device, _Way] = {}

    def bring(self, tensors: Iterable[torch.Tensor], devices: Sequence[torch.device]) -> Arriving:
        """Begin to copy each tensor, when it is made, to its device."""
        found, ways = list[torch.Tensor](), set[_Way]()
        for x, device in zip(tensors, devices, strict=True):
            if device.type in ("cpu", "meta") or x.device.type != "cpu" or not x.numel():
                found.append(x.to(device))
                continue
            if (way := self._ways.get(device)) is None:
                way = self._ways[device] = _Way(device)
            found.append(way.bring(x))
            ways.add(way)
        return Arriving(found, [way.mark([x for x in found if x.device == way.device]) for way in ways])


class _Way:
    """To one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream(device=device)
        self._buffers = [_pinned(device), _pinned(device)]
        self._done: list[Any] = [None, None]
        self._next = 0

    def bring(self, x: torch.Tensor) -> torch.Tensor:
        source = x.detach().contiguous().view(-1).view(torch.uint8)
        with self._module.stream(self._stream):
            out = torch.empty(x.shape, dtype=x.dtype, device=self.device)
            target = out.view(-1).view(torch.uint8)
            for start in range(0, len(source), _BUFFER):
                self._copy(source[start : start + _BUFFER], target[start : start + _BUFFER])
        return out

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        i, self._next = self._next, 1 - self._next
        if self._done[i] is not None:
            self._done[i].synchronize()
        staged = self._buffers[i][: len(source)].copy_(source)
        target.copy_(staged, non_blocking=True)
        self._done[i] = self._module.Event()
        self._done[i].record(self._stream)

    def mark(self, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """What makes the stream that computes wait for all up to now."""
        event = self._module.Event()
        event.record(self._stream)

        def wait() -> None:
            stream = self._module.current_stream(self.device)
            stream.wait_event(event)
            for x in tensors:  # their memory is this stream's, and goes back to it when the other is done with it
                x.record_stream(stream)

        return wait


def _pinned(device: torch.device) -> torch.Tensor:
    try:
        return torch.empty(_BUFFER, dtype=torch.uint8, pin_memory=device.type == "cuda")
    except RuntimeError:  # the system allows a process no more of it
        return torch.empty(_BUFFER, dtype=torch.uint8)
