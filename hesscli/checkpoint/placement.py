"""Where the weights go: one device, several with every parameter on one of them, or layers that stay in their files."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import convert_file_size_to_int
from torch import nn

from hesscli.checkpoint.memory import available_bytes
from hesscli.errors import DoesNotFitError, UsageError

__all__ = ["Plan", "available_bytes", "decide"]

_PLACEMENTS = ("auto", "single", "layerwise")
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's own
# Times the weights that a product in memory holds: they, a vector, a result, a gradient.
_IN_MEMORY = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What `from_pretrained` is given."""

    device_map: str | dict[str, Any] | None
    """None: the host."""
    max_memory: dict[int | str, int | str] | None
    device: torch.device | None
    """The one device, None where accelerate or a map decides."""
    folder: Path | None = None
    """Where vectors, and copies of weights that are not stored as they are used, go when layers stay on disk."""
    limit: int | None = None
    """Bytes of host memory that weights, vectors and derivatives may take, where the host is the one device."""
    spread: bool = False
    """Whether it may become another plan where one device is too small."""
    computing: torch.device | None = None
    """The one device that computes while every layer is left on the host or on disk, so that products have room."""
    sent: bool = False
    """Whether it is read to be sent to other processes, layer by layer: those stay in their files until then."""


def decide(
    placement: str,
    *,
    device_map: str | Mapping[str, Any] | None,
    max_memory: Mapping[Any, int | str] | None,
    offload_dir: str | None = None,
) -> Plan:
    """The plan that these options ask for; nothing is placed yet.

    Raises:
        UsageError: options that contradict each other, or name a device or a folder that is not there.
        DoesNotFitError: a map that sends weights nowhere.
    """
    if placement == "fsdp":
        if device_map is not None or max_memory:
            what = "'fsdp' gives each process its shards, and a device map or a limit has no meaning for it"
            raise UsageError("placement", what, "leave one of them out")
        folder = None if offload_dir is None else _folder(offload_dir)
        return replace(_one_device(torch.device("cpu")), folder=folder, sent=True)
    if placement not in _PLACEMENTS:
        raise UsageError("placement", f"'{placement}' is unknown", f"use one of {', '.join(_PLACEMENTS)}")
    asked = _read_map(device_map)
    if asked is None and placement == "layerwise":
        asked = "auto"
    if asked is not None:
        _refuse_many_processes()
    folder = None if offload_dir is None else _folder(offload_dir)
    if placement == "single" and folder is not None:
        raise UsageError("offload_dir", "placement 'single' has every weight in memory", "leave one of them out")
    if asked == "disk":
        asked = {"": "disk"}
    if _bounds_the_host(asked, max_memory):
        return replace(_one_device(torch.device("cpu")), folder=_needed(folder), limit=_limit(max_memory))
    if asked is None or (isinstance(asked, str) and asked not in _STRATEGIES):
        if max_memory:
            remedy = "add --device-map auto or --placement layerwise, or leave it out"
            raise UsageError("max_memory", "it has no meaning for one device", remedy)
        plan = _one_device(_device(asked) if asked is not None else _default_device())
        return replace(plan, folder=folder, spread=asked is None and placement == "auto")
    if placement == "single":
        what = f"'single' contradicts the device map '{asked if isinstance(asked, str) else 'given'}'"
        raise UsageError("placement", what, "leave one of them out")
    if isinstance(asked, dict):
        for target in asked.values():
            if target != "disk":
                _device(target)
    return Plan(asked, _numbered(max_memory), None, folder=folder)


def settle(plan: Plan, *, needed: int, id: str) -> Plan:
    """The plan again, or another that the memory found now calls for where the options leave that open.

    With a folder for them, layers stay out of a device that could hold them, and not a product beside them.

    Raises:
        DoesNotFitError: the weights need more than is free, and may go nowhere else.
    """
    if plan.sent:  # what is held is not known before it is known which layers can stay in their files
        return plan
    if plan.limit is not None:
        return replace(plan, device_map={"": "disk"}, device=None) if _IN_MEMORY * needed > plan.limit else plan
    wanted = needed if plan.folder is None else _IN_MEMORY * needed
    if not plan.spread or plan.device is None or wanted <= available_bytes(plan.device):
        check_room(plan, needed=needed, id=id)
        return plan
    if plan.device.type == "cuda" and (torch.cuda.device_count() > 1 or plan.folder is not None):
        _refuse_many_processes()
        alone = plan.device if torch.cuda.device_count() == 1 else None
        return Plan("auto", None, None, folder=plan.folder, computing=alone)
    if plan.folder is None:
        check_room(plan, needed=needed, id=id)
    return replace(plan, device_map={"": "disk"}, device=None)


def as_a_whole(plan: Plan, *, needed: int, id: str) -> Plan:
    """The same for a checkpoint that cannot be sent layer by layer, and is read as a whole first.

    Raises:
        DoesNotFitError: the weights need more than is free.
    """
    check_room(plan, needed=needed, id=id)
    return replace(plan, sent=False)


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
        remedy = "use --dtype bfloat16, --offload-dir DIR, --placement layerwise or a larger machine"
        raise DoesNotFitError("placement", what, remedy)


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


def run_at_weights(model: nn.Module) -> None:
    """Let each module of a model over several devices run where its own weights are.

    accelerate brings inputs to where the map sends a module. A weight that is tied to another module's lies in one of
    the two places.
    """
    for module in model.modules():
        hook, p = getattr(module, "_hf_hook", None), next(module.parameters(recurse=False), None)
        if isinstance(hook, AlignDevicesHook) and p is not None and not p.is_meta:
            hook.execution_device = p.device


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
    if target == "meta":
        remedy = "map every part to a device that holds it, or to disk"
        raise DoesNotFitError("device_map", "weights on 'meta' are nowhere, so they have no curvature", remedy)
    try:
        device = torch.device(target)  # type: ignore[call-overload] # whatever the user wrote
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        names = ", ".join((*_STRATEGIES, "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))))
        what = f"there is no device '{target}' here"
        raise UsageError("device_map", what, f"use one of {names}, or a JSON map") from error
    return device


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"'{name}' cannot be made ({error.strerror})"
        raise UsageError("offload_dir", what, "give a folder that can be written") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError("offload_dir", f"'{name}' cannot be written", "give a folder that can be")
    return folder


def _bounds_the_host(asked: str | dict[str, Any] | None, max_memory: Mapping[Any, int | str] | None) -> bool:
    """Whether the only device is the host, and the only bound on it: then it decides what stays on disk."""
    whole = asked is None or asked == "cpu" or asked in _STRATEGIES
    return whole and bool(max_memory) and set(max_memory or ()) == {"cpu"} and not torch.cuda.is_available()


def _needed(folder: Path | None) -> Path:
    if folder is None:
        what = "a bound on cpu needs a place for what is above it"
        raise UsageError("max_memory", what, "add --offload-dir DIR, or leave it out")
    return folder


def _limit(max_memory: Mapping[Any, int | str] | None) -> int:
    size = (max_memory or {})["cpu"]
    try:
        limit = int(convert_file_size_to_int(size))
    except ValueError as error:
        raise UsageError("max_memory", f"'{size}' is not a size", "write e.g. cpu=8GiB") from error
    return limit


def _default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _one_device(device: torch.device) -> Plan:
    return Plan(None if device.type == "cpu" else {"": device}, None, device)


def _numbered(max_memory: Mapping[Any, int | str] | None) -> dict[int | str, int | str] | None:
    """Keys as accelerate wants them: devices by number, `cpu` by name."""
    if not max_memory:
        return None
    return {int(key) if str(key).isdigit() else str(key): value for key, value in max_memory.items()}
