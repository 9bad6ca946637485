"""How much memory is free, measured now: decides what fits before it is tried."""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_bytes(device: torch.device) -> int:
    """Bytes that new tensors on `device` can take now.

    On CUDA: what the driver has free and what torch's allocator holds unused. On the host: the least of what the
    system has available and what is left in each control group that this process is in.
    """
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = psutil.virtual_memory().available
    return min(room, *cgroup_room(root=_CGROUPS, membership=_MEMBERSHIP), room)


def give_back() -> None:
    """Let the C library give back to the system what was freed; nothing happens where it has no such call.

    glibc keeps freed memory for later, in pieces between what is in use: a process that goes through layers one after
    the other comes to hold several of them. A few milliseconds, and the pages are made anew when they are needed.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return None


def cgroup_room(*, root: Path, membership: Path) -> Iterator[int]:
    """What is left under each memory limit from the process's own control group up to the root, v2 and v1.

    Inactive page cache counts as free: the kernel gives it back before a limit bites.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # no control groups on this system
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        else:
            continue
        inside = base / path.strip("/")
        # In a container the path may be the host's and not exist here; the root's files are then our own.
        for group in (inside, *inside.parents):
            room = _room(group, *names)
            if room is not None:
                yield room
            if group == base:
                break


def _room(group: Path, limit: str, used: str, reclaimable: str) -> int | None:
    try:
        ceiling = (group / limit).read_text(encoding="utf-8").strip()
        if ceiling == "max":
            return None
        taken = int((group / used).read_text(encoding="utf-8"))
        cache = [
            int(line.split()[1])
            for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()
            if line.split()[0] == reclaimable
        ]
        return max(0, int(ceiling) - taken + sum(cache))
    except (OSError, ValueError, IndexError):
        return None  # no limit here that can be read
