"""In which layer an operation is, forward and back, and on which device that layer would be.

On `meta` everything is in one place. An operation belongs to the layer whose forward runs; on the way back to the one
in which the node of autograd was made that runs, by the nodes' numbers. What is done between layers belongs to the
layer before.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hesscli.checkpoint.layers import outermost_layers


@dataclass(frozen=True, slots=True)
class Region:
    """A layer by its number, -1 for what lies outside of layers, and the device that it is on."""

    layer: int
    device: int


_START = Region(-1, 0)


class Regions:
    """Knows where a model's work is. It marks the modules of the model, which is for this alone.

    `layers` are the numbers of the model's layers, `devices` the device of each, of `count`; `outside` is the device of
    each module outside of them that has parameters, by name; inputs and losses are on the first device. A layer or
    module copies what comes to it from another device, as hooks of accelerate do.
    """

    def __init__(
        self, model: nn.Module, *, layers: Sequence[int], devices: Sequence[int], outside: Mapping[str, int], count: int
    ) -> None:
        self.count = count
        self._here, self._next = _START, 0
        self._starts, self._regions = [0], [_START]
        before = outside.get(next(iter(outside), ""), 0)
        for number, device, layer in zip(layers, devices, outermost_layers(model).values(), strict=True):
            layer.forward = self._entering(layer.forward, Region(number, device), hidden_from=before)
            before = device
        for name, device in outside.items():
            module = model.get_submodule(name)
            module.forward = self._entering(module.forward, Region(-1, device), hidden_from=None)
        if self.count > 1:
            model.forward = self._returning(model.forward)

    def start(self) -> None:
        """Work begins: outside of layers, on the first device."""
        self._enter(_START)

    def here(self) -> Region:
        """Where the operation is that runs now."""
        node = torch._C._current_autograd_node()
        if node is not None and (number := node._sequence_nr()) < self._next:
            self._go(self._regions[bisect_right(self._starts, number) - 1])
        return self._here

    def passed(self) -> None:
        """The operation is over: nodes that are made from here on have higher numbers."""
        self._next = torch._C._autograd._get_sequence_nr()

    def _enter(self, region: Region) -> None:
        self.passed()
        self._go(region)

    def _go(self, region: Region) -> None:
        if region is not self._here:
            self._here = region
            self._starts.append(self._next)
            self._regions.append(region)

    def _entering(self, forward: Callable[..., Any], region: Region, *, hidden_from: int | None) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            came_from = self._here.device if hidden_from is None else hidden_from
            self._enter(region)
            if self.count == 1:
                return forward(*args, **kwargs)
            first = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)

            def brought(x: Any) -> Any:
                home = came_from if x is first else 0
                return x.clone() if isinstance(x, torch.Tensor) and home != region.device else x

            return forward(*tree_map(brought, args), **tree_map(brought, kwargs))

        return call

    def _returning(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What a model returns comes to the device of its inputs."""

        def call(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            away = self._here.device != 0
            self._enter(_START)
            for name, value in list(out.items()) if away else ():
                if isinstance(value, torch.Tensor):
                    out[name] = value.clone()
            return out

        return call
