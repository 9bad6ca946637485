"""How many bytes the user lets each device hold."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int


def stated_limits(max_memory: Mapping[Any, int | str] | None) -> dict[torch.device, int]:
    """Bytes by device of a bound that was read before: a number names an accelerator, `cpu` the host."""
    found = {}
    for name, size in (max_memory or {}).items():
        device = torch.device("cuda", int(name)) if str(name).isdigit() else torch.device(str(name))
        found[device] = int(convert_file_size_to_int(size))
    return found
