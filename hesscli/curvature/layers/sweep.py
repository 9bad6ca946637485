"""One batch's product, forward and back over the calls of a model's layers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from hesscli.curvature.layers.divided import GATE, divided_in
from hesscli.curvature.layers.pull_back import Brought, Piece, Tangents, Turn, pull_back, push_forward, reached
from hesscli.curvature.layers.push_layer import LayerPush, Own, Weights, float_places
from hesscli.curvature.layers.residence import Leaves
from hesscli.curvature.layers.stack import Forward, Reached, Stack, intercepted
from hesscli.curvature.losses import cross_entropy, scores
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import ScoreCurvature, curve, curve_all
from hesscli.curvature.substituted import run_with
from hesscli.data.slice import IGNORED, Batch
from hesscli.linalg.space import ParameterVector

_Cotangent = tuple[torch.Tensor | None, Tangents]  # g, and dg for each vector


@dataclass(slots=True, eq=False)
class Call:
    """One run of a layer: what it was called with, which of that follows from parameters, and what it returned."""

    layer: nn.Module
    leaves: list[Any]
    spec: TreeSpec
    places: tuple[int, ...]
    outputs: list[TensorWeakRef] = field(default_factory=list)
    """An output that nothing reads, such as attention weights, is gone after the sweep forward."""
    glue: list[torch.Tensor] = field(default_factory=list)
    """Inputs that no layer returned as they are, and no call before this had."""

    @property
    def inputs(self) -> list[torch.Tensor]:
        """The tensors that follow from parameters, each with a graph back to leaves of the sweep."""
        return [self.leaves[i] for i in self.places]

    def run(self, values: Sequence[torch.Tensor], weights: Weights) -> Any:
        """What the layer returns for these in place of its inputs and its weights."""
        leaves = list(self.leaves)
        for place, value in zip(self.places, values, strict=True):
            leaves[place] = value
        args, kwargs = tree_unflatten(leaves, self.spec)
        own = {f"layer.{name}": weight for name, weight in weights.items()}
        return run_with(_Bare(self.layer), own, args, kwargs)


class _Bare(nn.Module):
    """A layer without what its call does around forward: hooks have run by then."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.forward(*args, **kwargs)


class Sweep:
    """Products with some vectors, added into `totals` batch by batch; not yet divided by the number of terms.

    `outside` are the open leaves of what lies outside of layers. With `gradient`, which is not for a Gauss-Newton
    matrix, the gradient is added there: without vectors that costs 4 units, and holds the weights of one layer.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        stack: Stack,
        curvature: ScoreCurvature | None,
        pushes: tuple[LayerPush, LayerPush],
        vs: Sequence[ParameterVector],
        totals: Sequence[ParameterVector],
        *,
        outside: Leaves,
        gradient: ParameterVector | None = None,
    ) -> None:
        self._risk, self._stack, self._curvature, self._residence = risk, stack, curvature, risk.residence
        (self._push_layer, self._push_head), self._vs = pushes, vs
        self._totals, self._gradient, self._outside = totals, gradient, outside
        # A part that is zero is left out, and so is what would be computed for it.
        self._moving = self._residence.moving(vs)
        # By id, of the leaves that are open.
        self._place: dict[int, int] = {id(leaf): place for place, leaf in outside.values()}
        self._gates: set[int] = set()  # by id, of what stands for weights that come a portion at a time
        self._still: Tangents = [None] * len(vs)
        self._calls: list[Call] = []
        self._returned: list[TensorWeakRef] = []
        self._tangents = WeakIdKeyDictionary()  # activation -> its tangent for each vector
        # By id: the activation, which lives as long as it waits here, g, and dg for each vector.
        self._cotangents: dict[int, tuple[torch.Tensor, torch.Tensor | None, Tangents]] = {}

    def add(self, batch: Batch) -> None:
        """One batch: forward through the layers, through the head, and back."""
        with torch.enable_grad():
            with intercepted(self._stack.layers, self._enter):
                try:
                    found = scores(self._risk.model, self._risk.inputs(batch))
                    last = None
                except Reached as reached:
                    last = reached.args[0]
            if last is None:
                self._through_scores(found, batch)
                del found
            else:
                self._through_head(last, batch)
                del last
            while self._calls:
                self._back(self._calls.pop())
        self._returned.clear()
        self._cotangents.clear()

    def _enter(self, layer: nn.Module, _forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of a layer's forward: values go on as leaves of their own, tangents are kept beside them."""
        leaves, spec = tree_flatten((args, kwargs))
        places = tuple(i for i in float_places(leaves) if leaves[i].requires_grad)
        call = Call(layer, leaves, spec, places)
        for x in call.inputs:
            if id(x) not in self._place and x not in self._tangents:
                activations, read = self._sources([x])
                sources = [*activations, *read]
                self._tangents[x] = push_forward(x, sources, self._all(sources), num_vectors=len(self._still))
                call.glue.append(x)
        self._calls.append(call)
        with self._opened(layer) as own:
            out, tangents = self._push_layer(
                call.run,
                call.inputs,
                self._all(call.inputs),
                own,
                num_vectors=len(self._still),
                turn=_turning(layer, collecting=False),
            )
        returned, spec = tree_flatten(out)
        for i, pushed in zip(float_places(returned), tangents, strict=True):
            returned[i] = returned[i].detach().requires_grad_(bool(places or own))
            self._tangents[returned[i]] = pushed
            call.outputs.append(TensorWeakRef(returned[i]))
        self._returned += call.outputs
        if self._stack.token_inputs and len(self._calls) == len(self._stack.outputs):
            raise Reached(returned[self._stack.outputs[-1].first])
        return tree_unflatten(returned, spec)

    @contextmanager
    def _opened(self, layer: nn.Module) -> Iterator[Own]:
        """One layer's weights by name, with the vectors' parts; they are let go of after."""
        with self._residence.layer(layer) as leaves:
            unknown = [leaf for _, leaf in leaves.values() if id(leaf) not in self._place]
            self._place.update((id(leaf), place) for place, leaf in leaves.values())
            own: Own = {name: (leaf, self._parts(place)) for name, (place, leaf) in leaves.items()}
            divided = divided_in(layer)
            for name, module in divided.items():
                module.vectors = self
                if module.places:
                    own[f"{name}.{GATE}"] = module.gate, self._reached(module.gate, module.places.values())
                    self._gates.add(id(module.gate))
            try:
                yield own
            finally:
                for module in divided.values():
                    module.vectors, module.turn, module.collecting = None, None, False
                for leaf in unknown:
                    del self._place[id(leaf)]

    def _parts(self, place: int) -> Tangents:
        """Of each vector the part, whole and in the weight's dtype where it is used: a copy for each use, or none."""
        return Brought(lambda k: self._residence.whole(place, self._vs[k][place]), self._moving[place])

    def _reached(self, gate: torch.Tensor, places: Iterable[int]) -> Tangents:
        """Of each vector whether it moves one of these places, as a tangent of the gate before them."""
        one = torch.ones_like(gate, requires_grad=False)
        moving = [any(self._moving[place][k] for place in places) for k in range(len(self._vs))]
        return [one if moves else None for moves in moving]

    def along(self, place: int, rows: slice | None, k: int) -> torch.Tensor | None:
        """These rows of vector k's part, as their weight needs them; None where the part is zero."""
        if not self._moving[place][k]:
            return None
        part = self._vs[k][place]
        return self._residence.whole(place, part if rows is None else part[rows])

    def collect(self, place: int, rows: slice | None, k: int | None, product: torch.Tensor) -> None:
        """Add to these rows of the k-th result's part; None is the gradient, where there is one."""
        total = self._gradient if k is None else self._totals[k]
        if total is not None:
            self._residence.add(place, total[place] if rows is None else total[place][rows], product)

    def _all(self, tensors: Sequence[torch.Tensor]) -> list[Tangents]:
        return [self._parts(self._place[id(x)]) if id(x) in self._place else self._tangents[x] for x in tensors]

    def _sources(self, outputs: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Where glue starts that leads to these: what layers returned, and selected parameters outside of them.

        A layer's own weight is among those only where the model reads it from elsewhere.
        """
        found = reached(outputs)
        alive = [y for ref in self._returned if (y := ref()) is not None and id(y) in found]
        return alive, [leaf for _, leaf in self._outside.values() if id(leaf) in found]

    def _back(self, call: Call) -> None:
        """Make a layer again, pull the cotangents of what it returned through it, and then through glue before it."""
        reached = [i for i, ref in enumerate(call.outputs) if (y := ref()) is not None and id(y) in self._cotangents]
        if reached:
            values = [x.detach().requires_grad_() for x in call.inputs]
            with self._opened(call.layer) as opened:
                leaves, _ = tree_flatten(call.run(values, {}))
                made = [leaves[i] for i in float_places(leaves)]
                own = [p for p, _ in opened.values()]
                tangents = [*self._all(call.inputs), *(t for _, t in opened.values())]
                turn = _turning(call.layer, collecting=True)
                piece = Piece([made[i] for i in reached], values, own, tangents, turn)
                del leaves, made, opened, own
                self._pull(piece, call.inputs, [self._taken(call.outputs[i]()) for i in reached], keep=False)
                del piece
        glue = [x for x in call.glue if id(x) in self._cotangents]
        if glue:
            self._through_glue(glue, [self._taken(x) for x in glue])

    def _taken(self, x: torch.Tensor | None) -> _Cotangent:
        _, g, dgs = self._cotangents.pop(id(x))
        return g, dgs

    def _through_glue(self, outputs: Sequence[torch.Tensor], given: Sequence[_Cotangent]) -> None:
        activations, own = self._sources(outputs)
        piece = Piece(outputs, activations, own, self._all([*activations, *own]))
        self._pull(piece, activations, given, keep=True)

    def _pull(self, piece: Piece, targets: Sequence[torch.Tensor], given: Sequence[_Cotangent], *, keep: bool) -> None:
        """Through a piece, and add what comes out to `targets`, which its activations stand for, and to the totals."""
        cotangents = [g for g, _ in given], [dgs for _, dgs in given]
        for i, (g, dgs) in enumerate(self._pulled(piece, *cotangents, keep=keep)):
            x = targets[i]
            if id(x) in self._place:
                results = [] if self._gradient is None else [(self._gradient, g)]
                for total, product in [*results, *zip(self._totals, dgs, strict=True)]:
                    self._collect([x], total, [product])
            elif g is not None or any(dg is not None for dg in dgs):
                _, old, d_old = self._cotangents.get(id(x), (x, None, self._still))
                self._cotangents[id(x)] = x, _sum(old, g), [_sum(a, b) for a, b in zip(d_old, dgs, strict=True)]

    def _pulled(
        self, piece: Piece, cotangents: Sequence[torch.Tensor | None], d_cotangents: Sequence[Tangents], *, keep: bool
    ) -> list[_Cotangent]:
        """Through a piece; what comes out for parameters is added up as it is made, the rest returned."""
        q, seconds = pull_back(
            piece,
            cotangents,
            d_cotangents,
            num_vectors=len(self._still),
            keep=keep,
            gradient=self._gradient is not None,
        )
        count = len(piece.activations)
        if self._gradient is not None:
            self._collect(piece.parameters, self._gradient, q[count:])
        back: list[list[torch.Tensor | None]] = [[] for _ in range(count)]
        for total in self._totals:
            second = next(seconds)
            self._collect(piece.parameters, total, second[count:])
            for dgs, dg in zip(back, second[:count], strict=True):
                dgs.append(dg)
            del second  # before the next vector's is made
        return list(zip(q[:count], back, strict=True))

    def _collect(self, parameters: Sequence[torch.Tensor], total: ParameterVector, products: Tangents) -> None:
        for p, product in zip(parameters, products, strict=True):
            if product is not None and id(p) not in self._gates:
                place = self._place[id(p)]
                self._residence.add(place, total[place], product)

    def _through_scores(self, found: torch.Tensor, batch: Batch) -> None:
        """A head that does not take tokens one by one: the scores of the whole batch at once."""
        flat = found.flatten(0, 1)
        if self._curvature is None:
            loss = cross_entropy(flat, batch.targets.flatten()).sum()
            self._through_glue([loss], [(torch.ones_like(loss), self._still)])
            return
        activations, own = self._sources([flat])
        sources = [*activations, *own]
        pushed = push_forward(flat, sources, self._all(sources), num_vectors=len(self._still))
        curved = [None if t is None else curve_all(self._curvature, batch, flat.detach(), t) for t in pushed]
        self._through_glue([flat], [(None, curved)])

    def _through_head(self, last: torch.Tensor, batch: Batch) -> None:
        """By chunks of tokens; a token without a term has neither a gradient nor a tangent of it."""
        if last.shape[:2] != batch.targets.shape:
            msg = "the last layer's output has not one row for each target"
            raise RuntimeError(msg)
        hidden = last.detach().flatten(0, 1)
        along = [None if t is None else t.flatten(0, 1) for t in self._all([last])[0]]
        parts = [torch.zeros_like(hidden) for _ in range(1 + len(along))]
        own = self._head_parameters(hidden)
        labels = batch.targets.flatten().to(hidden.device)
        terms = (labels != IGNORED).nonzero().squeeze(1)
        for chunk in self._stack.chunks(terms) if len(terms) else ():
            h, dh = hidden[chunk].requires_grad_(), [None if t is None else t[chunk] for t in along]
            given: _Cotangent = (None, self._still)
            if self._curvature is None:
                output = cross_entropy(self._stack.head(h), labels[chunk]).sum()
                given = torch.ones_like(output), self._still
            else:
                output, pushed = self._push_head(
                    lambda at, weights: self._stack.head(at[0], weights), [h], [dh], own, num_vectors=len(along)
                )
                curved = [None if t is None else curve(self._curvature, batch, chunk, output, t) for t in pushed[0]]
                output, given = self._stack.head(h), (None, curved)
            piece = Piece([output], [h], [p for p, _ in own.values()], [dh, *(t for _, t in own.values())])
            ((g, dgs),) = self._pulled(piece, [given[0]], [given[1]], keep=False)
            for part, found in zip(parts, [g, *dgs], strict=True):
                if found is not None:
                    part[chunk] = found
        if last.requires_grad:
            first, *others = [part.view_as(last) for part in parts]
            self._cotangents[id(last)] = last, None if self._curvature else first, others

    def _head_parameters(self, hidden: torch.Tensor) -> Own:
        """Those that the head reads where a gradient sees it; forward mode would see more."""
        moving = reached([self._stack.head(hidden[:1])])
        named = self._outside.items()
        return {name: (leaf, self._parts(place)) for name, (place, leaf) in named if id(leaf) in moving}


def _turning(layer: nn.Module, *, collecting: bool) -> Turn | None:
    """Tells the modules of a layer whose weights come a portion at a time whose turn it is; None without any."""
    divided = list(divided_in(layer).values())

    def turn(k: int | None) -> None:
        for module in divided:
            module.turn, module.collecting = k, collecting

    return turn if divided else None


def _sum(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    return a if b is None else b if a is None else a + b
