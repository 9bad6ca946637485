"""Weights on the host or on disk, fetched when their layer runs; the next layer is read while this one computes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.memory import give_back
from hesscli.checkpoint.stored import StoredWeight
from hesscli.curvature.layers.divided import GATE, Divided, Opened, Portion, parts_of
from hesscli.curvature.layers.residence import Leaves
from hesscli.curvature.layers.staging import Arriving, Staging
from hesscli.curvature.layers.widening import held_in, widened
from hesscli.linalg.mapped import is_mapped, release
from hesscli.linalg.mapped_space import MappedSpace
from hesscli.linalg.space import ParameterSpace, ParameterVector

Reads = Mapping[str, Callable[[], torch.Tensor]]
Change = Callable[[int, torch.Tensor, slice | None], torch.Tensor]
"""Of a place, a weight there and the rows that it is of the whole, what takes its place."""

# A layer of more bytes is fetched a portion of its experts at a time, of so many bytes each, where it has any: a device
# of 80 GiB holds eight times a smaller one. It costs three more passes of weights in a product.
_WHOLE, _PORTION = 4 << 30, 1 << 29
# Layers of at least so many bytes, and how many of them, come and go before the host's memory is given back: to make
# its pages anew costs a fifth of a product where it is done after each.
_WORTH_GIVING_BACK, _LAYERS_BETWEEN = 1 << 20, 8
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

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(p.nbytes for p in self.parameters)


class Offloaded:
    """The residence of a model some of whose layers are read when they run.

    Holds the weights of one layer, of the next one, and of what lies outside of those layers; of a layer with more than
    4 GiB of them, one portion of its experts and the next (`divided.py`). To fetch is to copy to the device that
    computes; `reads` says how a weight is read by the parameter's name, and stand-ins of NaN are in its
    place before and after. Layers fetch their weights themselves in a pass without a gradient. A pass with one that no
    context was opened for raises RuntimeError: it would find the weights gone on its way back. Vectors lie on the host
    as a whole, in `folder` if there is one; a device has the parts of one of them, of a layer or of what lies outside
    of layers, while it computes with them.
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
        self.space, self._parameters = _space(names, parameters, folder), tuple(parameters)
        self.vectors_elsewhere = any(p.device.type != "cpu" for p in parameters)
        places = {id(p): i for i, p in enumerate(parameters)}
        self._read_of = {id(p): reads[name] for name, p in model.named_parameters() if name in reads}
        self._layers: dict[nn.Module, _Fetched] = {}
        fetched: set[int] = set()
        for module in outermost_layers(model).values():
            apart = self._divide(module, places)
            named = {name: p for name, p in module.named_parameters() if id(p) not in apart}
            own = [p for p in named.values() if id(p) in self._read_of]
            if own or apart:
                leaves = {name: (places[id(p)], p) for name, p in named.items() if id(p) in places}
                fetched |= {id(p) for p in own} | apart
                self._layers[module] = _Fetched(module, own, [self._read_of[id(p)] for p in own], leaves)
        if fetched != self._read_of.keys():
            msg = "a weight that is not in memory lies outside of the model's layers"
            raise RuntimeError(msg)
        self._places = places
        each = enumerate(zip(names, parameters, strict=True))
        self._outside = {name: (i, p) for i, (name, p) in each if id(p) not in self._read_of}
        self._change: Change | None = None
        self._in_memory = [p for p in (*model.parameters(), *model.buffers()) if id(p) not in self._read_of]
        self._wide: torch.dtype | None = None
        self._closed = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="hess-fetch")
        self._staging = Staging()
        self._ahead: tuple[_Fetched, Future[Arriving]] | None = None
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
        """A copy where the weight's layer runs, if the part does not lie there already; and of one in a file."""
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

        def moved(place: int, weight: torch.Tensor, rows: slice | None) -> torch.Tensor:
            part = v[place] if rows is None else v[place][rows]
            return torch.add(weight, self.whole(place, part), alpha=alpha)

        return self.changed(moved)

    @contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """For the block weights are what `change` makes of a place and the weight there."""
        kept = [(p, p.data) for _, p in self._outside.values()]
        self._change = change
        try:
            for place, p in self._outside.values():
                p.data = change(place, p.data, None)
            yield
        finally:
            self._change = None
            for p, data in kept:
                p.data = data

    @contextmanager
    def widened(self, dtype: torch.dtype) -> Iterator[None]:
        """For the block narrower weights are in `dtype`: copies of those in memory, others as they are fetched."""
        self._wide = dtype
        try:
            with held_in(dtype, self._in_memory):
                yield
        finally:
            self._wide = None

    def weight(self, place: int) -> torch.Tensor:
        """A selected weight on the host, beside the parts of vectors: read if it is not where the model computes."""
        return self._held(place).to("cpu")

    def weights_norm(self) -> float:
        """The length of the selected weights: each is read once."""
        squares = 0.0
        for place in range(len(self._parameters)):
            squares += _squared(self._held(place))
        return float(np.sqrt(squares))

    def _held(self, place: int) -> torch.Tensor:
        read = self._read_of.get(id(self._parameters[place]))
        return self._parameters[place].detach() if read is None else read()

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
                p.data = self._used(self._places.get(id(p)), weight, None)
            self._look_ahead(layer)
            yield
        finally:
            layer.depth -= 1
            for p, stand_in in zip(layer.parameters, stand_ins, strict=True):
                p.data = stand_in
            self._give_back(layer)

    def _give_back(self, layer: _Fetched) -> None:
        """What the allocator keeps of layers on the host grows with their number; a bound on memory would not hold."""
        if layer.nbytes >= _WORTH_GIVING_BACK and not self.vectors_elsewhere:
            self._closed += 1
            if self._closed % _LAYERS_BETWEEN == 0:
                give_back()

    def _used(self, place: int | None, weight: torch.Tensor, rows: slice | None) -> torch.Tensor:
        """What the model computes with in place of a weight that was read, or of these rows of it."""
        weight = weight if self._wide is None else widened(weight, self._wide)
        return weight if place is None or self._change is None else self._change(place, weight, rows)

    def _divide(self, layer: nn.Module, places: Mapping[int, int]) -> set[int]:
        """Let the experts of a layer that is too large fetch their weights themselves; the ids of those weights."""
        apart: set[int] = set()
        for module, portions in _parts_of(layer).values():
            named = dict(module.named_parameters())
            if all(id(p) in self._read_of for p in named.values()):
                apart |= {id(p) for p in named.values()}
                device = next(iter(named.values())).device
                gate = torch.zeros((), device=device, requires_grad=True)
                module.register_buffer(GATE, gate, persistent=False)
                selected = {name: places[id(p)] for name, p in named.items() if id(p) in places}
                module.forward = Divided(module, portions, selected, partial(self._portions, named))
        return apart

    def _portions(self, named: Mapping[str, nn.Parameter], portions: Sequence[Portion]) -> Iterator[Opened]:
        """The weights of portions, one after the other; the next one's are read while one computes."""

        def read(portion: Portion) -> Arriving:
            found = (self._read_rows(p, portion.rows) for p in named.values())
            return self._staging.bring(found, [p.device for p in named.values()])

        ahead = self._reader.submit(read, portions[0])
        for i, portion in enumerate(portions):
            found = dict(zip(named, ahead.result().arrived(), strict=True))
            if i + 1 < len(portions):
                ahead = self._reader.submit(read, portions[i + 1])
            places = {name: self._places.get(id(p)) for name, p in named.items()}
            yield Opened(portion, {n: (places[n], self._used(places[n], w, portion.rows)) for n, w in found.items()})
            del found

    def _read_rows(self, p: nn.Parameter, rows: slice | None) -> torch.Tensor:
        read = self._read_of[id(p)]
        if rows is None:
            return read()
        stored = getattr(read, "__self__", None)
        return stored.read_rows(rows) if isinstance(stored, StoredWeight) else read()[rows]

    def _take(self, layer: _Fetched) -> Sequence[torch.Tensor]:
        """A layer's weights, which may have been read ahead."""
        expected, self._ahead = self._ahead, None
        if expected is not None and expected[0] is layer:
            return expected[1].result().arrived()
        if expected is not None:
            expected[1].cancel()
        here = not self.vectors_elsewhere  # the way to an accelerator is the reading thread's
        with torch._C.DisableTorchFunction():  # what is read is what is stored, whatever the model computes in
            return (self._read(layer) if here else self._reader.submit(self._read, layer).result()).arrived()

    def _read(self, layer: _Fetched) -> Arriving:
        return self._staging.bring((read() for read in layer.reads), [p.device for p in layer.parameters])

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


def experts_at_once(model: nn.Module, *, of: int) -> int:
    """How many of a layer's stacked experts are fetched together: all, where no layer is too large for that."""
    parts = [part for layer in outermost_layers(model).values() for part in _parts_of(layer).values()]
    rows = [portion.rows for _, portions in parts for portion in portions if portion.rows is not None]
    return min(of, max((r.stop - r.start for r in rows), default=of))


def _parts_of(layer: nn.Module) -> dict[str, tuple[nn.Module, list[Portion]]]:
    large = sum(p.nbytes for p in layer.parameters()) > _WHOLE
    return parts_of(layer, most=_PORTION) if large else {}


def _space(names: Sequence[str], parameters: Sequence[nn.Parameter], folder: Path | None) -> ParameterSpace:
    """Vectors on the host, in files of the folder where there is one."""
    homes = [torch.empty(1, dtype=p.dtype).expand(p.shape) for p in parameters]
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
