"""Weights that are not brought into memory: layers stay in their files, and are fetched when they run."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory, send_to_device
from torch import nn
from transformers import PreTrainedModel, modeling_utils

from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.memory import available_bytes
from hesscli.checkpoint.placement import Plan
from hesscli.checkpoint.stored import stored_weight
from hesscli.checkpoint.weights import Header, stored_tensors
from hesscli.errors import DoesNotFitError, UsageError

Read = Callable[[], torch.Tensor]
Reads = dict[str, Read]
"""How each weight that is not where the model computes is read, by the parameter's name."""

# How often one layer, and what lies outside of layers, is held at the worst moment of a product with one vector: a
# layer's weights and the next one's, the vector's part, two derivatives and what they are made from; at the head the
# same. Seen above the libraries' own memory: 6 for 48 layers of 4 MiB, 7.8 for three of 64 MiB, 8.5 for a tied
# embedding of 31 MiB.
_OF_A_LAYER, _OF_THE_REST, _AT_THE_HEAD = 8, 2, 9
_OF_THE_HOST = 0.5  # of what is free may layers take; the rest is for vectors, or for the pages of their files


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's weights, each tied one once."""

    layers: Mapping[str, int]
    """Of the layers that can be left where they are: those that share no weight."""
    rest: int

    @property
    def least(self) -> int:
        """Memory that weights and one vector take in a product, with all of these layers fetched one at a time.

        What depends on the data, the activations of a layer on one batch, comes on top.
        """
        layer = max(self.layers.values(), default=0)
        return max(_OF_A_LAYER * layer + _OF_THE_REST * self.rest, 2 * layer + _AT_THE_HEAD * self.rest)


def sizes_of(bare: nn.Module) -> Sizes:
    """The sizes of a model without weights, whose ties are made."""
    counts = Counter(id(p) for _, p in bare.named_parameters(remove_duplicate=False))
    layers = {
        name: sum(p.nbytes for p in layer.parameters())
        for name, layer in outermost_layers(bare).items()
        if all(counts[id(p)] == 1 for p in layer.parameters()) and any(True for _ in layer.parameters())
    }
    return Sizes(layers, sum(p.nbytes for p in bare.parameters()) - sum(layers.values()))


def check_least(sizes: Sizes, *, limit: int | None, id: str) -> None:
    """Refuse a bound that one layer at a time does not fit.

    Raises:
        DoesNotFitError: it is below the least that works, which is named.
        UsageError: the model has no layer that could be fetched.
    """
    if not sizes.layers:
        what = f"'{id}' has no list of layers that share no weight, so none can be left on disk"
        raise UsageError("device_map", what, "use --placement single")
    if limit is not None and limit < sizes.least:
        least = -(-sizes.least // 2**20)
        what = f"cpu={limit / 2**20:.0f}MiB is too little for '{id}': one layer at a time takes {least} MiB"
        raise DoesNotFitError("max_memory", f"{what} and a batch's activations", f"use cpu={2 * least}MiB")


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where each part of a model goes when some layers are not where they compute."""

    device_map: dict[str, Any]
    """What `from_pretrained` is given: every layer by its own name."""
    left_out: dict[str, torch.device]
    """By layer that is on disk or on the host the device that it computes on."""
    on_host: tuple[str, ...]
    """Layers that lie in the host's memory while another device computes."""


def arrange(plan: Plan, bare: PreTrainedModel, *, id: str, beside: int = 0) -> Arrangement | None:
    """What a plan leaves on disk or on the host, None where nothing.

    Only layers are left out, each as a whole; what lies outside of them a product needs all the time, and `beside`
    bytes that are no part of the model yet. What the plan sends to no accelerator computes on the first that it names,
    and on the host where it names none.

    Raises:
        UsageError: no layer is left out, though parts of the model are.
        DoesNotFitError: what has to be in memory does not fit the bound.
    """
    wanted = plan.device_map
    if plan.sent:
        return _all_in_files(bare, id=id)
    if plan.computing is not None:
        wanted = _all_away(bare, plan.computing)
    elif isinstance(wanted, str):
        wanted = _inferred(wanted, bare, plan.max_memory) if torch.cuda.is_available() else None
    if wanted is None:
        return None
    devices = (torch.device(target) for target in wanted.values() if target != "disk")
    main = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
    away = ("disk",) if main.type == "cpu" else ("disk", "cpu")
    if not any(target in away for target in wanted.values()):
        return None
    sizes = sizes_of(bare)
    check_least(replace(sizes, rest=sizes.rest + beside), limit=plan.limit, id=id)
    homes = {name: _home(name, wanted) for name in sizes.layers}
    if not any(home in away for home in homes.values()):
        what = f"it leaves out no layer of '{id}' but what every product needs"
        raise UsageError("device_map", what, f"map layers, such as '{next(iter(homes))}'")
    layers = {name: homes.get(name, main) for name in outermost_layers(bare)}
    tensors = [name for name, _ in (*bare.named_parameters(remove_duplicate=False), *bare.named_buffers())]
    outside = {name: _home(name, wanted) for name in tensors if not name.startswith(tuple(f"{n}." for n in layers))}
    resident = {name: main if home in away else torch.device(home) for name, home in outside.items()}
    if set(resident.values()) <= {main}:
        resident = {}
    places = {name: home if home in away else torch.device(home) for name, home in layers.items()}
    left_out = {name: main for name, home in places.items() if home in away}
    on_host = tuple(name for name, home in places.items() if home == "cpu" and name in left_out)
    return Arrangement({"": main, **resident, **places}, left_out, on_host)


def _all_in_files(bare: PreTrainedModel, *, id: str) -> Arrangement:
    """Every layer that shares no weight stays in its files; no product is made where they are read."""
    sizes, host = sizes_of(bare), torch.device("cpu")
    check_least(sizes, limit=None, id=id)
    return Arrangement({"": host} | dict.fromkeys(sizes.layers, "disk"), dict.fromkeys(sizes.layers, host), ())


def _home(layer: str, device_map: Mapping[str, Any]) -> Any:
    """Where a layer or a tensor goes: on disk where a part of it does."""
    inside = [target for key, target in device_map.items() if key.startswith(f"{layer}.")]
    if "disk" in inside:
        return "disk"
    if inside:
        return inside[0]
    covering = [key for key in device_map if key in ("", layer) or layer.startswith(f"{key}.")]
    return device_map[max(covering, key=len)] if covering else "cpu"


def _all_away(bare: PreTrainedModel, device: torch.device) -> dict[str, Any]:
    """Layers on the host as far as it has room for them, else on disk: what `hess plan` counts on one device."""
    room, wanted = _OF_THE_HOST * available_bytes(torch.device("cpu")), dict[str, Any]({"": device})
    for name, size in sizes_of(bare).layers.items():
        room -= size
        wanted[name] = "cpu" if room >= 0 else "disk"
    return wanted


def _inferred(strategy: str, bare: PreTrainedModel, max_memory: Mapping[Any, Any] | None) -> dict[str, Any]:
    """The map that accelerate makes for a strategy, with the memory that is free now where none is given.

    Where that does not hold all weights, each device keeps room for a product, which is made with layers that come and
    go.
    """
    found = _accelerates(strategy, bare, dict(max_memory) if max_memory else None)
    if max_memory or not {"cpu", "disk"} & set(found.values()):
        return found
    least = sizes_of(bare).least
    devices = range(torch.cuda.device_count())
    room: dict[Any, int] = {i: max(0, available_bytes(torch.device("cuda", i)) - least) for i in devices}
    room["cpu"] = int(_OF_THE_HOST * available_bytes(torch.device("cpu")))
    return _accelerates("sequential", bare, room)


def _accelerates(strategy: str, bare: PreTrainedModel, room: dict[Any, Any] | None) -> dict[str, Any]:
    unsplit = list(getattr(bare, "_no_split_modules", None) or [])
    if strategy != "sequential":
        zero = strategy == "balanced_low_0"
        room = get_balanced_memory(bare, max_memory=room, no_split_module_classes=unsplit, low_zero=zero)
    found: dict[str, Any] = infer_auto_device_map(bare, max_memory=room, no_split_module_classes=unsplit)
    return found


@contextmanager
def undispatched(index: dict[str, Any]) -> Iterator[None]:
    """For the block transformers notes in `index` where it leaves weights, and puts no hooks on a model that has some.

    Files are read without being mapped: pages of a map count as memory held, and there are as many as the file has.
    """

    def note(_model: Any, _quantizer: Any, _map: Any, _folder: Any, offloaded: dict[str, Any] | None, _b: Any) -> None:
        index.update(offloaded or {})

    def unmapped(file: Any, *, framework: str, device: str = "cpu", backend: str = "") -> Any:  # noqa: ARG001
        return safetensors.safe_open(file, framework=framework, device=device, backend="pread")

    library: Any = modeling_utils
    kept = library.accelerate_dispatch, library.safe_open
    library.accelerate_dispatch, library.safe_open = note, unmapped
    try:
        yield
    finally:
        library.accelerate_dispatch, library.safe_open = kept


def leave_out(model: PreTrainedModel, index: Mapping[str, Any], arrangement: Arrangement) -> Reads:
    """Put stand-ins of NaN for weights that are not where the model computes; returns how each is read, by name.

    Those that the index names are on disk; those of the layers `on_host` were loaded and stay there. A stand-in has
    its weight's shape and dtype, the memory of one number, and the device that its layer computes on: what reads it by
    mistake gives NaN, and no wrong figure. Buffers of these layers, which are small, go to that device.
    """
    reads: dict[str, Read] = {}
    headers: dict[Path, Header] = {}
    for layer, device in arrangement.left_out.items():
        module = model.get_submodule(layer)
        for own, p in list(module.named_parameters()):
            name = f"{layer}.{own}"
            if p.device.type == "meta":
                file, stored_name = Path(index[name]["safetensors_file"]), index[name]["weight_name"]
                header = headers[file] = headers.get(file) or stored_tensors(file)
                reads[name] = stored_weight(file, header[stored_name], dtype=p.dtype).read
            elif layer in arrangement.on_host:
                reads[name] = p.detach
            else:
                continue
            owner, _, key = own.rpartition(".")
            stands_in = nn.Parameter(stand_in(p, device), requires_grad=p.requires_grad)
            setattr(module.get_submodule(owner), key, stands_in)
        for part in module.modules():
            part._buffers.update({key: None if b is None else b.to(device) for key, b in part._buffers.items()})
    return reads


def stand_in(p: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of NaN like p in one number's memory."""
    return torch.full((1,), torch.nan, dtype=p.dtype, device=device).expand(p.shape)


def bring_inputs(model: nn.Module) -> None:
    """Let each layer, and each part outside of layers, run where its weights are: its inputs are brought there.

    A layer is in one place as a whole. Nothing is done for a model that is all on one device.
    """
    if len({p.device for p in model.parameters()}) > 1:
        _bring(model, set(outermost_layers(model).values()))


def _bring(module: nn.Module, layers: Set[nn.Module]) -> None:
    one = len({p.device for p in module.parameters()}) == 1 and layers.isdisjoint(module.modules())
    whole = one or module in layers
    p = next(module.parameters(recurse=whole), None)
    if p is not None:
        module.register_forward_pre_hook(partial(_brought, p.device), with_kwargs=True)
    if not whole:
        for part in module.children():
            _bring(part, layers)


def _brought(device: torch.device, _module: nn.Module, args: Any, kwargs: Any) -> Any:
    return send_to_device((args, kwargs), device)
