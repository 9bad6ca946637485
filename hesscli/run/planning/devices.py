"""What there is to compute on: as it was said, or as it is found."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from hesscli.checkpoint.limits import stated_limits
from hesscli.checkpoint.memory import available_bytes
from hesscli.errors import UsageError
from hesscli.run.planning.document import Devices

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_GIVEN = re.compile(r"(?:(?P<count>\d+)\s*[xX*])?\s*(?P<size>[\w.]+)(?:\s*,\s*host=(?P<host>[\w.]+))?")


def given_devices(text: str) -> Devices:
    """`8x80GiB`, `80GiB`, or with the host's memory `8x80GiB,host=1TiB`.

    Raises UsageError where it is neither.
    """
    found = _GIVEN.fullmatch(text.strip())
    count = int(found["count"] or 1) if found else 0
    if found is None or count < 1:
        raise UsageError("devices", f"{text!r} is not COUNTxSIZE", "write e.g. 8x80GiB, or 8x80GiB,host=1TiB")
    host = None if found["host"] is None else size_in_bytes(found["host"])
    return Devices(count=count, bytes_each=size_in_bytes(found["size"]), host_bytes=host, found=False)


def size_in_bytes(text: str) -> int:
    """`80GiB` and `80GB` in bytes: powers of 1024 and of 1000.

    Raises UsageError where it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UsageError("devices", f"{text!r} is not a size", "write e.g. 80GiB")
    units = _UNITS if found[3] else _DECIMAL
    return int(float(found[1]) * units[found[2].upper()])


def found_devices(max_memory: Mapping[Any, int | str] | None = None) -> Devices:
    """The GPUs of this machine, each taken to have what the fullest has free; else the host's own memory.

    Of what is free no more than `max_memory` lets a device hold.
    """
    limits = stated_limits(max_memory)

    def free(device: torch.device) -> int:
        return min(available_bytes(device), limits.get(device, 1 << 62))

    host = free(torch.device("cpu"))
    if not torch.cuda.is_available():
        return Devices(count=1, bytes_each=host, host_bytes=None, found=True)
    each = [free(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    return Devices(count=len(each), bytes_each=min(each), host_bytes=host, found=True)
