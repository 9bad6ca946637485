"""Which of several devices each part of a model without weights would go to, by the rule of `device_map="auto"`."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import _get_device_map

from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.quiet import quiet

_ENOUGH = 1 << 60  # bytes of a device: what is divided is the model, whatever the devices have


@dataclass(frozen=True, slots=True)
class Homes:
    """Devices by number, the first one that of the inputs."""

    count: int
    layers: Sequence[int]
    """Of each outermost layer, in their order; -1 of one that is left out."""
    outside: Mapping[str, int]
    """Of each module outside of layers that has parameters or buffers of its own, by name."""
    parameters: Mapping[str, int]
    """Of each parameter and buffer, by each of its names."""

    def only(self, devices: Sequence[int]) -> "Homes":
        """Of these, numbered anew: the first one, and all that have parts outside of layers, must be among them."""
        number = {device: i for i, device in enumerate(devices)}
        return Homes(
            len(devices),
            [number.get(device, -1) for device in self.layers],
            {name: number[device] for name, device in self.outside.items()},
            {name: number.get(device, -1) for name, device in self.parameters.items()},
        )


def at_home(model: nn.Module) -> Homes:
    """All on one device."""
    return Homes(1, [0] * len(outermost_layers(model)), {}, {})


def spread(model: PreTrainedModel, *, count: int) -> Homes | None:
    """Over so many devices; None where a layer would be divided.

    It is transformers' own division, in which each device but the last has about its share of the weights.
    """
    with quiet(), _without_warnings():
        found = _get_device_map(model, "auto", dict.fromkeys(range(count), _ENOUGH), None)
    if any(not isinstance(home, int) for home in found.values()):
        return None
    layers = outermost_layers(model)
    own = {name: _home(name, found) for name in layers}
    if any(home is None for home in own.values()):
        return None
    inside = tuple(f"{name}." for name in layers)
    first: dict[int, int] = {}  # by id: a parameter of two names lies where the first one goes
    parameters = {}
    for name, x in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        parameters[name] = first.setdefault(id(x), _home(name, found) or 0)
    outside = {
        name: first[id(tensor)]
        for name, module in model.named_modules()
        if name not in layers and not f"{name}.".startswith(inside) and (tensor := _own(module)) is not None
    }
    return Homes(count, [home or 0 for home in own.values()], outside, parameters)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Accelerate says of each device whether it is here, which none has to be."""
    log = logging.getLogger("accelerate")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _home(name: str, found: Mapping[str, int]) -> int | None:
    covering = [key for key in found if key in ("", name) or name.startswith(f"{key}.")]
    return found[max(covering, key=len)] if covering else None


def _own(module: nn.Module) -> torch.Tensor | None:
    """A parameter or buffer of the module itself: it runs where that lies."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return next((x for x in tensors if x is not None), None)
