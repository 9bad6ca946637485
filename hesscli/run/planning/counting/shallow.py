"""A deep model by a few of its layers: of those that are alike the first, the last, and how many lie between."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.spread import Homes
from hesscli.run.planning.counting.course import Course, Longer, whole_course

_LONGEST = 8  # layers of different kinds that take turns, at most


@dataclass(frozen=True, slots=True)
class Shallow:
    """A copy of a model with some of its layers."""

    model: nn.Module
    layers: tuple[int, ...]
    """Which they are, in the order of the whole model's."""
    missing: np.ndarray
    """(devices,): how often the whole model has as many more as this one has beyond the shallowest."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Layers that are alike, or take turns in `period` kinds, on one device."""

    start: int
    length: int
    period: int
    device: int

    end: int
    """How many of them are kept at each end: whole turns."""

    @property
    def saved(self) -> int:
        """How many a count is spared; negative where it is more work."""
        return self.length - 2 * self.end - self.period


def shallow_models(model: nn.Module, *, homes: Homes, ends: int) -> list[Shallow]:
    """The shallowest model first, then those with a layer of a kind more; with no `ends` a copy of the whole alone.

    `ends` are the layers that are kept at each end of those that are alike.
    """
    kinds = [_kind(layer) for layer in outermost_layers(model).values()]
    runs = _runs(kinds, homes.layers, lists=_lists(model), ends=ends) if ends else []
    inner = [range(run.start + run.end, run.start + run.length - run.end) for run in runs]
    least = {i for i, device in enumerate(homes.layers) if device >= 0} - {i for layers in inner for i in layers}
    found = [_with_layers(model, least, np.zeros(homes.count))]
    turns = [sum(run.device == other.device for other in runs[:i]) for i, run in enumerate(runs)]
    for turn in sorted(set(turns)):
        more, missing = set(least), np.zeros(homes.count)
        for run, layers, its in zip(runs, inner, turns, strict=True):
            if its == turn:
                more |= set(layers[: run.period])
                missing[run.device] = len(layers) // run.period
        found.append(_with_layers(model, more, missing))
    return found


def over_depth(models: Sequence[Shallow], courses: Sequence[Course]) -> Course | None:
    """The whole model's course from those over these models; None where they are not alike."""
    least = set(models[0].layers)
    pairs = zip(models[1:], courses[1:], strict=True)
    longer = [Longer(course, set(more.layers) - least, more.missing) for more, course in pairs]
    return whole_course(courses[0], longer)


def _kind(layer: nn.Module) -> Hashable:
    """What decides the bytes of a layer: its class, and shape, dtype and part of its tensors."""
    named = (*layer.named_parameters(), *layer.named_buffers())
    return type(layer), tuple((name, tuple(x.shape), x.dtype, x.requires_grad) for name, x in named)


def _runs(kinds: Sequence[Hashable], devices: Sequence[int], *, lists: Sequence[int], ends: int) -> list[_Run]:
    """Those that are long enough to leave layers out of, from the first on; within a list of layers and a device."""
    keys = list(zip(kinds, devices, lists, strict=True))
    runs, i = [], 0
    while i < len(keys):
        best = max(
            (_run(keys, i, period, ends) for period in range(1, _LONGEST + 1)),
            key=lambda run: run.saved,
        )
        if lists[i] >= 0 and devices[i] >= 0 and best.saved > 0:
            runs.append(best)
            i += best.length
        else:
            i += 1
    return runs


def _run(keys: Sequence[tuple[Hashable, int, int]], start: int, period: int, ends: int) -> _Run:
    return _Run(start, _alike(keys, start, period), period, keys[start][1], -(-ends // period) * period)


def _alike(keys: Sequence[tuple[Hashable, int, int]], start: int, period: int) -> int:
    """How many layers from there on take turns so, a whole number of turns."""
    end = start
    while end < len(keys) and keys[end][1:] == keys[start][1:]:
        if end - start >= period and keys[end] != keys[end - period]:
            break
        end += 1
    return (end - start) // period * period


def _lists(model: nn.Module) -> list[int]:
    """Of each layer the number of the list that it is in; -1 where it is in none, and cannot be left out."""
    places = {id(layer): i for i, layer in enumerate(outermost_layers(model).values())}
    found = [-1] * len(places)
    for number, part in enumerate(m for m in model.modules() if isinstance(m, nn.ModuleList)):
        if len(part) and all(id(layer) in places for layer in part):
            for layer in part:
                found[places[id(layer)]] = number
    return found


def _with_layers(model: nn.Module, kept: set[int], missing: np.ndarray) -> Shallow:
    layers = list(outermost_layers(model).values())
    stand_ins = {id(layer): nn.Identity() for i, layer in enumerate(layers) if i not in kept}
    left_out = {id(stand_in) for stand_in in stand_ins.values()}
    copied = copy.deepcopy(model, dict(stand_ins))
    for part in list(copied.modules()):
        if isinstance(part, nn.ModuleList) and any(id(layer) in left_out for layer in part):
            remaining = [layer for layer in part if id(layer) not in left_out]
            part._modules.clear()
            part.extend(remaining)
    return Shallow(copied, tuple(sorted(kept)), missing)
