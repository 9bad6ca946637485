"""Where the weights go: one device, or several with every parameter resident on one of them."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hesscli.checkpoint.memory import available_bytes
from hesscli.errors import DoesNotFitError, UsageError

__all__ = ["Plan", "available_bytes", "decide"]

_PLACEMENTS = ("auto", "single", "layerwise")
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's own


@dataclass(frozen=True, slots=True)
class Plan:
    """What `from_pretrained` is given."""

    device_map: str | dict[str, Any] | None
    """None: the host."""
    max_memory: dict[int | str, int | str] | None
    device: torch.device | None
    """The one device, None where accelerate decides."""


def decide(
    placement: str,
    *,
    device_map: str | Mapping[str, Any] | None,
    max_memory: Mapping[Any, int | str] | None,
) -> Plan:
    """The plan that these options ask for; nothing is placed yet.

    Raises:
        UsageError: options that contradict each other or name a device that is not there.
        DoesNotFitError: a map that sends weights to disk.
    """
    if placement == "fsdp":
        raise UsageError("placement", "'fsdp' is not available in this version", "use single or layerwise")
    if placement not in _PLACEMENTS:
        raise UsageError("placement", f"'{placement}' is unknown", f"use one of {', '.join(_PLACEMENTS)}")
    asked = _read_map(device_map)
    if asked is None and placement == "layerwise":
        asked = "auto"
    if asked is not None:
        _refuse_many_processes()
    if asked is None or (isinstance(asked, str) and asked not in _STRATEGIES):
        if max_memory:
            remedy = "add --device-map auto or --placement layerwise, or leave it out"
            raise UsageError("max_memory", "it has no meaning for one device", remedy)
        return _one_device(_device(asked) if asked is not None else _default_device())
    if placement == "single":
        what = f"'single' contradicts the device map '{asked if isinstance(asked, str) else 'given'}'"
        raise UsageError("placement", what, "leave one of them out")
    if isinstance(asked, dict):
        for target in asked.values():
            _device(target)
    return Plan(asked, _numbered(max_memory), None)


def check_room(plan: Plan, *, needed: int, id: str) -> None:
    """Refuse weights that one device cannot hold, before they are read.

    Raises:
        DoesNotFitError: they need more than is free.
    """
    if plan.device is None or plan.device.type not in ("cpu", "cuda"):
        return
    free = available_bytes(plan.device)
    if needed > free:
        what = f"the weights of '{id}' need {needed / 2**30:.1f} GiB, {plan.device} has {free / 2**30:.1f} GiB free"
        raise DoesNotFitError("placement", what, "use --dtype bfloat16, --placement layerwise or a larger machine")


def check_map(plan: Plan, names: Iterable[str], *, id: str) -> None:
    """Refuse a map that leaves parameters out: transformers would put them on the host without a word.

    Raises:
        UsageError: `names` of parameters that no entry of the map covers.
    """
    if not isinstance(plan.device_map, dict):
        return
    keys = list(plan.device_map)
    left = [name for name in names if not any(key in ("", name) or name.startswith(f"{key}.") for key in keys)]
    if left:
        what = f"it leaves out {len(left)} parameters of '{id}' (first: {left[0]})"
        raise UsageError("device_map", what, "map every module, or use --device-map auto")


def _read_map(device_map: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    if device_map is None:
        return None
    if not isinstance(device_map, str):
        return dict(device_map)
    if not device_map.lstrip().startswith("{"):
        return device_map
    try:
        return dict(json.loads(device_map))
    except ValueError as error:
        what = f"'{device_map}' is not a JSON object"
        raise UsageError("device_map", what, 'write it like {"model": 0, "lm_head": 1}') from error


def _refuse_many_processes() -> None:
    # Each process would take every device; transformers only logs a hint and goes on (modeling_utils.py).
    if int(os.environ.get("WORLD_SIZE") or 0) > 1:
        what = f"a device map in {os.environ['WORLD_SIZE']} processes gives every device to each of them"
        raise UsageError("device_map", what, "start one process, without torchrun")


def _device(target: object) -> torch.device:
    if target in ("disk", "meta"):
        remedy = "map every part to a device that holds it"
        raise DoesNotFitError(
            "device_map", f"weights on '{target}' are not in memory, so they have no curvature", remedy
        )
    try:
        device = torch.device(target)  # type: ignore[call-overload] # whatever the user wrote
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        names = ", ".join((*_STRATEGIES, "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))))
        what = f"there is no device '{target}' here"
        raise UsageError("device_map", what, f"use one of {names}, or a JSON map") from error
    return device


def _default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _one_device(device: torch.device) -> Plan:
    return Plan(None if device.type == "cpu" else {"": device}, None, device)


def _numbered(max_memory: Mapping[Any, int | str] | None) -> dict[int | str, int | str] | None:
    """Keys as accelerate wants them: devices by number, `cpu` by name."""
    if not max_memory:
        return None
    return {int(key) if str(key).isdigit() else str(key): value for key, value in max_memory.items()}
