"""Weights, vectors and results of one layer at a time, put together from the shards of all processes.

This goes below FSDP2's hooks. They change a layer's inputs on the way in, know one backward pass and neither forward
mode nor a second derivative, and gather for a gradient's order of layers; a layered product has its own. So a bare copy
of the model computes, and what a layer needs goes into it from the shards that FSDP2 holds: weights and the vectors'
rows in one all-gather, results back in one reduce-scatter. For one vector and one batch that is five times a layer's
size on the wire, forward 2, back 2 and 1, where a central difference has six; the layer where forward turns back, and
the one where a batch follows another, stay and are gathered once for both.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.layers.residence import Leaves
from hesscli.curvature.layers.widening import held_in, widened
from hesscli.curvature.sharded.order import Opening, Order
from hesscli.distributed import Coming
from hesscli.linalg.space import ParameterSpace, ParameterVector


class ShardedResidence:
    """A residence (`layers/residence.py`) over shards; every method is for all ranks together.

    `bare` is the model without weights, `shards` this rank's rows of every parameter by name, the selected ones, in
    the space's order, among them. Holds what is open: what lies outside of layers during a product, one layer, and one
    more that is on its way to or from the other ranks; each with a part of every vector, or of every result.
    """

    def __init__(self, bare: nn.Module, shards: Mapping[str, torch.Tensor], space: ParameterSpace) -> None:
        self._bare, self._shards, self._space, self._ranks = bare, shards, space, space.ranks
        self._names = {id(p): name for name, p in bare.named_parameters()}
        self._places = {name: i for i, name in enumerate(space.names)}
        self._users: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in bare.modules():
            for key, p in module._parameters.items():
                if p is not None:
                    self._users[self._names[id(p)]].append((module, key))
        layers = outermost_layers(bare)
        self._inside = {id(layer): self._alone_in(layer) for layer in layers.values()}
        own = {name for names in self._inside.values() for name in names}
        self._outside = [name for name in self._names.values() if name not in own]
        self._open: dict[str, nn.Parameter] = {}
        self._gathered: dict[tuple[int, int], torch.Tensor] = {}  # by place and vector
        self._sums: dict[tuple[int, int], torch.Tensor] = {}  # by place and result
        self._vs: Sequence[ParameterVector] = ()
        self._results: Sequence[ParameterVector] = ()
        self._moving: list[list[bool]] = []
        self._order = Order()
        self._wide: torch.dtype | None = None
        self._ahead: tuple[int, _Coming] | None = None  # the id of a layer, whose weights are on their way
        self._sending: tuple[Sequence[tuple[int, int]], Coming] | None = None
        for layer in layers.values():
            layer.forward = self._by_itself(layer, layer.forward)

    def _alone_in(self, layer: nn.Module) -> list[str]:
        """The parameters that nothing but this layer uses."""
        inside = {id(m) for m in layer.modules()}
        names = [self._names[id(p)] for p in layer.parameters()]
        return [name for name in names if all(id(module) in inside for module, _ in self._users[name])]

    def _by_itself(self, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that gathers where nobody has opened the layer."""

        def gathering(*args: Any, **kwargs: Any) -> Any:
            with self.layer(layer):
                return forward(*args, **kwargs)

        return gathering

    @contextmanager
    def product(
        self, vs: Sequence[ParameterVector], results: Sequence[ParameterVector], *, like: Hashable
    ) -> Iterator[None]:
        """For the block, layers come with the parts of these vectors, and what they give goes to these results.

        Products that are `like` each other, and whose vectors move the same parts, open the same layers: from the
        second on a layer is gathered while the one before it computes, and its results are sent while the next does.
        """
        self._vs, self._results, self._moving = vs, results, self.moving(vs)
        self._order.begin((like, tuple(map(tuple, self._moving))))
        try:
            yield
            self._finish_sending()
            self._order.end()
        finally:
            self._vs = self._results = ()
            self._order.give_up()
            self._ahead = self._sending = None
            self._gathered.clear()
            self._sums.clear()

    @contextmanager
    def widened(self, dtype: torch.dtype) -> Iterator[None]:
        """For the block weights narrower than `dtype` are in it, and so are the vectors' parts beside them."""
        self._wide = dtype
        try:
            with held_in(dtype, self._bare.buffers()):
                yield
        finally:
            self._wide = None

    @contextmanager
    def outside(self) -> Iterator[Leaves]:
        """What lies outside of layers; when it closes, its results are sent and all that were not sent before."""
        coming = self._gather(self._outside)
        self._look_ahead(None, coming)
        gathered = coming()
        del coming  # and with it what was received, which is as large again
        with self._opened(self._outside, gathered) as leaves:
            yield leaves
            self._send_the_rest()

    @contextmanager
    def layer(self, layer: nn.Module) -> Iterator[Leaves]:
        """One layer's own; its results begin to be sent when it closes. Open already, it is as it is."""
        own = self._inside[id(layer)]
        if all(name in self._open for name in own):
            yield self._leaves_of(layer)
            return
        opening = self._order.open(id(layer))
        gathered = self._take(layer)()
        self._look_ahead(layer, lambda: gathered)
        with self._opened(own, gathered):
            yield self._leaves_of(layer)
            self._send(own, opening)

    def _take(self, layer: nn.Module) -> "_Coming":
        """A layer's weights and parts of vectors, which may be on their way."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._gather(self._inside[id(layer)])
        if ahead[0] != id(layer):
            ahead[1]()  # what is on its way must arrive before it is let go of
            return self._gather(self._inside[id(layer)])
        return ahead[1]

    def _look_ahead(self, layer: nn.Module | None, gathered: "_Coming") -> None:
        """Begin to gather what is expected next; a layer that is expected again stays."""
        following = self._order.following()
        if following is not None:
            same = layer is not None and following == id(layer)
            self._ahead = following, gathered if same else self._gather(self._inside[following])

    def moving(self, vs: Sequence[ParameterVector]) -> list[list[bool]]:
        """By looking at every rank's rows: one collective."""
        found = np.array([[float(v[i].any()) for v in vs] for i in range(len(self._space.names))])
        return [[bool(count) for count in row] for row in self._ranks.sum(found)]

    def whole(self, place: int, part: torch.Tensor) -> torch.Tensor:
        """A vector's part, which came with its layer."""
        number = next(k for k, v in enumerate(self._vs) if v[place] is part)
        return self._gathered[place, number]

    def add(self, place: int, total: torch.Tensor, product: torch.Tensor) -> None:
        """Note a result; it is sent with all others of its layer."""
        key = place, next(k for k, result in enumerate(self._results) if result[place] is total)
        product = product.to(total.dtype)
        self._sums[key] = self._sums[key].add_(product) if key in self._sums else product.clone()

    def _leaves_of(self, layer: nn.Module) -> Leaves:
        return self._leaves({name: self._name_of(module, key) for name, module, key in _parameters(layer)})

    def _name_of(self, module: nn.Module, key: str) -> str:
        return next(name for name, users in self._users.items() if (module, key) in users)

    def _leaves(self, names: Mapping[str, str]) -> Leaves:
        """By these names, what is open of the selected parameters."""
        chosen = {own: name for own, name in names.items() if name in self._places}
        return {own: (self._places[name], self._open[name]) for own, name in chosen.items()}

    @contextmanager
    def _opened(self, names: Sequence[str], gathered: "_Gathered") -> Iterator[Leaves]:
        for name, whole in gathered.weights.items():
            self._open[name] = nn.Parameter(whole, requires_grad=name in self._places)
            for module, key in self._users[name]:
                module._parameters[key] = self._open[name]
        self._gathered |= gathered.parts
        try:
            yield self._leaves({name: name for name in names})
        finally:
            for name in names:
                p = self._open.pop(name)
                one = torch.empty(1, dtype=self._shards[name].dtype, device="meta")  # a count takes `meta` for memory
                empty = nn.Parameter(one.expand(p.shape), requires_grad=p.requires_grad)
                for module, key in self._users[name]:
                    module._parameters[key] = empty
            gone = {self._places[name] for name in names if name in self._places}
            self._gathered = {key: part for key, part in self._gathered.items() if key[0] not in gone}

    def _gather(self, names: Sequence[str]) -> "_Coming":
        """Begin to gather weights and the moving vectors' parts, by one all-gather for each dtype."""
        by_dtype: dict[torch.dtype, list[tuple[str, int | None]]] = defaultdict(list)
        for name in names:
            dtype = self._shards[name].dtype
            by_dtype[dtype].append((name, None))
            if (place := self._places.get(name)) is not None:
                wide = dtype if self._wide is None else torch.promote_types(dtype, self._wide)
                by_dtype[wide] += [(name, k) for k in range(len(self._vs)) if self._moving[place][k]]
        coming = []
        for dtype, some in by_dtype.items():
            parts = [self._shards[n] if k is None else self._vs[k][self._places[n]].to(dtype) for n, k in some]
            coming.append((some, self._ranks.gather(parts, [self._shape(n) for n, _ in some])))

        def arrived() -> _Gathered:
            found = _Gathered({}, {})
            for some, wholes in coming:
                for (name, k), whole in zip(some, wholes(), strict=True):
                    if k is None:
                        found.weights[name] = whole if self._wide is None else widened(whole, self._wide)
                    else:
                        found.parts[self._places[name], k] = whole
            return found

        return arrived

    def _shape(self, name: str) -> tuple[int, ...]:
        module, key = self._users[name][0]
        p = module._parameters[key]
        assert p is not None
        return tuple(p.shape)

    def _send(self, names: Sequence[str], opening: Opening) -> None:
        """Begin to send every result of a layer, if any rank has one, by one reduce-scatter."""
        keys = [(self._places[n], k) for n in names if n in self._places for k in range(len(self._results))]
        if opening.sends is None:
            # Forward there is none, and a rank without a row for an expert may have none where others have.
            found = np.array([float(any(key in self._sums for key in keys))])
            opening.sends = bool(keys) and bool(self._ranks.sum(found)[0])
        if opening.sends:
            self._begin_sending(keys)

    def _send_the_rest(self) -> None:
        """What lies outside of layers, and what no equal product before had a result of: if any rank has one."""
        keys = [(place, k) for place in range(len(self._space.names)) for k in range(len(self._results))]
        if keys:
            found = self._ranks.sum(np.array([float(key in self._sums) for key in keys]))
            self._begin_sending([key for key, count in zip(keys, found, strict=True) if count])

    def _begin_sending(self, keys: Sequence[tuple[int, int]]) -> None:
        self._finish_sending()
        if not keys:
            return
        sums = []
        for place, k in keys:
            none = self._results[k][place].new_zeros(self._space.shapes[place])
            sums.append(self._sums.pop((place, k), none))
        self._sending = keys, self._ranks.sum_shards(sums)

    def _finish_sending(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None:
            for (place, k), part in zip(sending[0], sending[1](), strict=True):
                self._results[k][place].add_(part)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Whole weights by name, and parts of vectors by place and vector."""

    weights: dict[str, torch.Tensor]
    parts: dict[tuple[int, int], torch.Tensor]


_Coming = Callable[[], _Gathered]  # waits for what is on its way


def _parameters(layer: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name within the layer, module, key) of each parameter, once."""
    seen: set[int] = set()
    for prefix, module in layer.named_modules():
        for key, p in module._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                yield (f"{prefix}.{key}" if prefix else key), module, key
