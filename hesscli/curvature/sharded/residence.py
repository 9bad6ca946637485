"""Weights, vectors and results of one layer at a time, put together from the shards of all processes.

This goes below FSDP2's hooks. They change a layer's inputs on the way in, know one backward pass and neither forward
mode nor a second derivative, and gather for a gradient's order of layers; a layered product has its own. So a bare copy
of the model computes, and what a layer needs goes into it from the shards that FSDP2 holds: weights and the vectors'
rows in one all-gather, results back in one reduce-scatter. For one vector and one batch that is five times a layer's
size on the wire, forward 2, back 2 and 1, where a central difference has six.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.layers.residence import Leaves
from hesscli.linalg.space import ParameterSpace, ParameterVector


class ShardedResidence:
    """A residence (`layers/residence.py`) over shards; every method is for all ranks together.

    `bare` is the model without weights, `shards` this rank's rows of every parameter by name, the selected ones, in
    the space's order, among them. Holds what is open: what lies outside of layers during a product, and one layer.
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
    def product(self, vs: Sequence[ParameterVector], results: Sequence[ParameterVector]) -> Iterator[None]:
        """For the block, layers come with the parts of these vectors, and what they give goes to these results."""
        self._vs, self._results, self._moving = vs, results, self.moving(vs)
        try:
            yield
        finally:
            self._vs = self._results = ()
            self._gathered.clear()
            self._sums.clear()

    @contextmanager
    def outside(self) -> Iterator[Leaves]:
        """What lies outside of layers; its results are sent when it closes."""
        with self._opened(self._outside) as leaves:
            yield leaves

    @contextmanager
    def layer(self, layer: nn.Module) -> Iterator[Leaves]:
        """One layer's own; its results are sent when it closes. Open already, it is as it is."""
        own = self._inside[id(layer)]
        if all(name in self._open for name in own):
            yield self._leaves_of(layer)
            return
        with self._opened(own):
            yield self._leaves_of(layer)

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
    def _opened(self, names: Sequence[str]) -> Iterator[Leaves]:
        self._gather(names)
        try:
            yield self._leaves({name: name for name in names})
            self._send([self._places[name] for name in names if name in self._places])
        finally:
            for name in names:
                shape, chosen = self._open.pop(name).shape, name in self._places
                empty = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=chosen)
                for module, key in self._users[name]:
                    module._parameters[key] = empty
            gone = {self._places[name] for name in names if name in self._places}
            self._gathered = {key: part for key, part in self._gathered.items() if key[0] not in gone}

    def _gather(self, names: Sequence[str]) -> None:
        """Weights and the moving vectors' parts, by one all-gather for each dtype."""
        wanted: list[tuple[str, int | None]] = [(name, None) for name in names]
        for name in names:
            if (place := self._places.get(name)) is not None:
                wanted += [(name, k) for k in range(len(self._vs)) if self._moving[place][k]]
        by_dtype: dict[torch.dtype, list[tuple[str, int | None]]] = defaultdict(list)
        for name, k in wanted:
            by_dtype[self._shards[name].dtype].append((name, k))
        for dtype, some in by_dtype.items():
            parts = [self._shards[n] if k is None else self._vs[k][self._places[n]].to(dtype) for n, k in some]
            wholes = self._ranks.whole(parts, [self._shape(n) for n, _ in some])
            for (name, k), whole in zip(some, wholes, strict=True):
                if k is None:
                    self._open[name] = nn.Parameter(whole, requires_grad=name in self._places)
                else:
                    self._gathered[self._places[name], k] = whole
        for name in names:
            for module, key in self._users[name]:
                module._parameters[key] = self._open[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        module, key = self._users[name][0]
        p = module._parameters[key]
        assert p is not None
        return tuple(p.shape)

    def _send(self, places: Sequence[int]) -> None:
        """Every result of these parameters, if any rank has one, by one reduce-scatter."""
        keys = [(place, k) for place in places for k in range(len(self._results))]
        # Forward there is none, and a rank without a row for an expert may have none where others have.
        if not keys or not self._ranks.sum(np.array([float(any(key in self._sums for key in keys))]))[0]:
            return
        sums = []
        for place, k in keys:
            own = self._results[k][place]
            none = own.new_zeros(self._space.shapes[place])
            sums.append(self._sums.pop((place, k), none))
        for (place, k), part in zip(keys, self._ranks.shard_sums(sums), strict=True):
            self._results[k][place].add_(part)


def _parameters(layer: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name within the layer, module, key) of each parameter, once."""
    seen: set[int] = set()
    for prefix, module in layer.named_modules():
        for key, p in module._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                yield (f"{prefix}.{key}" if prefix else key), module, key
