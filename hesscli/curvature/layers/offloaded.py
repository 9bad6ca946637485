"""Weights on the host or on disk, fetched when their layer runs; the next layer is read while this one computes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.layers.residence import Leaves
from hesscli.curvature.layers.widening import in_float32, widened
from hesscli.linalg.mapped import is_mapped, release
from hesscli.linalg.mapped_space import MappedSpace
from hesscli.linalg.space import ParameterSpace, ParameterVector

Reads = Mapping[str, Callable[[], torch.Tensor]]
Change = Callable[[int, torch.Tensor], torch.Tensor]

_PIECE = 1 << 20  # entries that are looked at together for one that is not zero


@dataclass(eq=False, slots=True)
class _Fetched:
    """One layer whose weights are not in memory while it does not run."""

    module: nn.Module
    parameters: list[nn.Parameter]
    reads: list[Callable[[], torch.Tensor]]
    leaves: Leaves
    depth: int = 0
    """How many contexts of it are open."""


class Offloaded:
    """The residence of a model some of whose layers are read when they run.

    Holds the weights of one layer, of the next one, and of what lies outside of those layers. To fetch is to copy to
    the device that computes; `reads` says how a weight is read by the parameter's name, and stand-ins of NaN are in its
    place before and after. Layers fetch their weights themselves in a pass without a gradient. A pass with one that no
    context was opened for raises RuntimeError: it would find the weights gone on its way back. Vectors lie on the host
    where their weights are not on a device, and in `folder` if there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        reads: Reads,
        *,
        names: Sequence[str],
        parameters: Sequence[nn.Parameter],
        folder: Path | None,
    ) -> None:
        self.space, self._parameters = _space(reads, names, parameters, folder), tuple(parameters)
        places = {id(p): i for i, p in enumerate(parameters)}
        self._read_of = {id(p): reads[name] for name, p in model.named_parameters() if name in reads}
        self._layers: dict[nn.Module, _Fetched] = {}
        for module in outermost_layers(model).values():
            named = dict(module.named_parameters())
            own = [p for p in named.values() if id(p) in self._read_of]
            if own:
                leaves = {name: (places[id(p)], p) for name, p in named.items() if id(p) in places}
                self._layers[module] = _Fetched(module, own, [self._read_of[id(p)] for p in own], leaves)
        if {id(p) for layer in self._layers.values() for p in layer.parameters} != self._read_of.keys():
            msg = "a weight that is not in memory lies outside of the model's layers"
            raise RuntimeError(msg)
        self._places = places
        each = enumerate(zip(names, parameters, strict=True))
        self._outside = {name: (i, p) for i, (name, p) in each if id(p) not in self._read_of}
        self._change: Change | None = None
        self._in_memory = [p for p in (*model.parameters(), *model.buffers()) if id(p) not in self._read_of]
        self._wide = False
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="hess-fetch")
        self._ahead: tuple[_Fetched, Future[list[torch.Tensor]]] | None = None
        # Which layer came after a pair of them: the order of a run, forward and back, is seen and not assumed.
        self._after: dict[tuple[_Fetched | None, _Fetched], _Fetched] = {}
        self._last: tuple[_Fetched | None, _Fetched | None] = None, None
        for layer in self._layers.values():
            layer.module.forward = self._fetching(layer, layer.module.forward)

    @contextmanager
    def outside(self) -> Iterator[Leaves]:
        """The selected parameters that are in memory all the time."""
        yield self._outside

    @contextmanager
    def layer(self, layer: nn.Module) -> Iterator[Leaves]:
        """Weights are there for the block, and the next layer's are being read."""
        fetched = self._layers.get(layer)
        if fetched is None:
            yield {n: (self._places[id(p)], p) for n, p in layer.named_parameters() if id(p) in self._places}
            return
        with self._weights(fetched):
            yield fetched.leaves

    def moving(self, vs: Sequence[ParameterVector]) -> list[list[bool]]:
        """By looking at each part, a piece at a time."""
        return [[_has_an_entry(v[i]) for v in vs] for i in range(len(self._parameters))]

    def whole(self, place: int, part: torch.Tensor) -> torch.Tensor:
        """A copy where the weight's layer runs, if the part does not lie there already."""
        weight = self._parameters[place]
        found = part.to(weight.device, weight.dtype, copy=is_mapped(part))
        release(part)
        return found

    def add(self, place: int, total: torch.Tensor, product: torch.Tensor) -> None:  # noqa: ARG002
        """Add in place, where the total lies."""
        total.add_(product.to(total.device, total.dtype))
        release(total)

    def displaced(self, v: ParameterVector, alpha: float) -> AbstractContextManager[None]:
        """For the block weights are theta + alpha v: copies of those in memory, others as they are fetched."""
        return self.changed(lambda place, weight: torch.add(weight, self.whole(place, v[place]), alpha=alpha))

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """For the block weights are what `change` makes of a place and the weight there."""
        kept = [(p, p.data) for _, p in self._outside.values()]
        self._change = change
        try:
            for place, p in self._outside.values():
                p.data = change(place, p.data)
            yield
        finally:
            self._change = None
            for p, data in kept:
                p.data = data

    @contextmanager
    def widened(self) -> Iterator[None]:
        """For the block narrow weights are float32: copies of those in memory, others as they are fetched."""
        self._wide = True
        try:
            with in_float32(self._in_memory):
                yield
        finally:
            self._wide = False

    def weight(self, place: int) -> torch.Tensor:
        """A selected weight beside the vectors' parts of it: read if it is not where the model computes."""
        read = self._read_of.get(id(self._parameters[place]))
        return self._parameters[place].detach() if read is None else read()

    def weights_norm(self) -> float:
        """The length of the selected weights: each is read once."""
        squares = 0.0
        for place in range(len(self._parameters)):
            squares += _squared(self.weight(place))
        return float(np.sqrt(squares))

    @contextmanager
    def _weights(self, layer: _Fetched) -> Iterator[None]:
        layer.depth += 1
        if layer.depth > 1:
            try:
                yield
            finally:
                layer.depth -= 1
            return
        stand_ins = [p.data for p in layer.parameters]
        try:
            for p, weight in zip(layer.parameters, self._take(layer), strict=True):
                place = self._places.get(id(p))
                weight = widened(weight) if self._wide else weight
                p.data = weight if place is None or self._change is None else self._change(place, weight)
            self._look_ahead(layer)
            yield
        finally:
            layer.depth -= 1
            for p, stand_in in zip(layer.parameters, stand_ins, strict=True):
                p.data = stand_in

    def _take(self, layer: _Fetched) -> list[torch.Tensor]:
        """A layer's weights, which may have been read ahead."""
        expected, self._ahead = self._ahead, None
        if expected is not None and expected[0] is layer:
            return expected[1].result()
        if expected is not None:
            expected[1].cancel()
        return self._read(layer)

    def _read(self, layer: _Fetched) -> list[torch.Tensor]:
        pairs = zip(layer.parameters, layer.reads, strict=True)
        return [read().to(p.device, copy=False) for p, read in pairs]

    def _look_ahead(self, layer: _Fetched) -> None:
        """Begin to read what came after this layer the last time."""
        before, last = self._last
        if last is not None:
            self._after[before, last] = layer
        self._last = last, layer
        following = self._after.get((last, layer))
        if following is not None:
            self._ahead = following, self._reader.submit(self._read, following)

    def _fetching(self, layer: _Fetched, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if layer.depth:
                return forward(*args, **kwargs)
            if torch.is_grad_enabled():
                msg = "a graph through the whole model needs every weight in memory"
                raise RuntimeError(msg)
            with self._weights(layer):
                return forward(*args, **kwargs)

        return call


def _space(
    reads: Reads, names: Sequence[str], parameters: Sequence[nn.Parameter], folder: Path | None
) -> ParameterSpace:
    """Vectors beside the weights: on the host where those are fetched, in files of the folder where there is one."""
    named = zip(names, parameters, strict=True)
    homes = [torch.empty(1, dtype=p.dtype).expand(p.shape) if name in reads else p for name, p in named]
    return ParameterSpace(names, homes) if folder is None else MappedSpace(names, homes, folder)


def _has_an_entry(part: torch.Tensor) -> bool:
    for piece in part.reshape(-1).split(_PIECE):
        found = bool(piece.any())
        release(piece)
        if found:
            return True
    return False


def _squared(weight: torch.Tensor) -> float:
    pieces = weight.reshape(-1).split(_PIECE)
    return sum(float(piece.double().square().sum()) for piece in pieces)
