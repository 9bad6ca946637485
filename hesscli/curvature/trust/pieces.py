"""Does a product hold for each piece of a model whose weights are never all in one place?

No graph goes through the whole of such a model. So on one short row each call of a layer, while its weights are there,
is held against double backward through that layer alone, and so is the head; nothing of what they are held against is
code of the sweep. That the pieces make up the loss the preflight sees, from differences of the loss alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hesscli.curvature.layers.pull_back import Piece, graph_nodes, pull_back, reached
from hesscli.curvature.layers.push_layer import LayerPush, Own, Run, float_places
from hesscli.curvature.layers.residence import Leaves
from hesscli.curvature.layers.stack import Forward, Stack, intercepted
from hesscli.curvature.layers.sweep import Call
from hesscli.curvature.losses import cross_entropy, scores, twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk

ONCE = "a function of the model is marked once_differentiable"
ROUNDINGS = 100.0  # that two sound products of a part may differ by: of a hundred architectures the worst shows 20

Parts = Sequence[torch.Tensor | None]


def fault_of_pieces(row: EmpiricalRisk, stack: Stack) -> str | None:
    """What is wrong with a layer or the head by itself, in words, on a short row; None where nothing is.

    That a function is marked as not to be differentiated again, that forward mode does not agree with reverse mode, or
    that a piece of the sweep does not agree with double backward. One pass over the layers, which goes to its end
    whatever it finds, so that processes which share the layers open the same ones. Holds seven times one layer, as a
    product does, and what lies outside of layers as often.
    """
    with twice_differentiable_attention(), row.residence.outside() as outside, torch.enable_grad():
        pieces = _Pieces(row, stack, outside)
        with intercepted(stack.layers, pieces.layer):
            found = scores(row.model, row.inputs(row.batches[0]))
        pieces.between_layers(found)
    return pieces.fault


def is_marked(gradients: Parts) -> bool:
    """Whether a function behind gradients that have a graph is marked as not to be differentiated again.

    torch puts an error behind such a function, which `autograd.grad` does not reach: products would be wrong without
    a word.
    """
    nodes = graph_nodes(g for g in gradients if g is not None)
    return any(node.name() == "torch::autograd::Error" for node in nodes)


class _Pieces:
    """One run of the model, whose layers are called one after the other."""

    def __init__(self, row: EmpiricalRisk, stack: Stack, outside: Leaves) -> None:
        self._row, self._stack, self._outside = row, stack, outside
        self._generator = torch.Generator().manual_seed(0)
        dtypes = {torch.float32, *(p.dtype for p in row.model.parameters())}  # norms are float32 in float64 too
        self._allowed = min(0.1, ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes))
        self._returned: list[torch.Tensor] = []
        self._glue: list[torch.Tensor] = []
        self._last: torch.Tensor | None = None
        self.fault: str | None = None

    def layer(self, layer: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of a layer's forward: check the layer, and go on from what it returns without its graph."""
        leaves, spec = tree_flatten((args, kwargs))
        places = tuple(i for i in float_places(leaves) if leaves[i].requires_grad)
        self._glue += [leaves[i] for i in places if leaves[i].grad_fn is not None]
        call = Call(layer, [x.detach() if isinstance(x, torch.Tensor) else x for x in leaves], spec, places)
        values = [x.detach().requires_grad_() for x in call.inputs]
        with self._row.residence.layer(layer) as opened:
            own: Own = {name: (leaf, [self._random(leaf)]) for name, (_, leaf) in opened.items()}
            along = [[self._random(x)] for x in values]
            given, given_kwargs = tree_unflatten(_replaced(call.leaves, places, values), spec)
            out = forward(*given, **given_kwargs)
            made = [x for x in _floats(out) if x.requires_grad]
            if made:
                cotangents: list[torch.Tensor | None] = [self._random(x) for x in made]
                sources = [*values, *(leaf for leaf, _ in own.values())]
                tangents = [*along, *(t for _, t in own.values())]
                truth = self._truth(made, cotangents, sources, [t for (t,) in tangents])
                del made
                self._check_push(call.run, values, along, own)
                again = [x for x in _floats(call.run(values, {})) if x.requires_grad]
                self._check_pull(Piece(again, values, sources[len(values) :], tangents), cotangents, truth)
                del again, truth, sources, tangents
            moves = bool(places or own)
        returned, form = tree_flatten(out)
        for i in float_places(returned):
            returned[i] = returned[i].detach().requires_grad_(moves)
            self._returned.append(returned[i])
        outputs = self._stack.outputs
        self._last = returned[outputs[-1].first]
        return tree_unflatten(returned, form)

    def between_layers(self, found: torch.Tensor) -> None:
        """What lies outside of layers, with the loss; the head where it takes tokens alone."""
        labels = self._row.batches[0].targets.flatten()
        loss = cross_entropy(found.flatten(0, 1), labels).sum()
        outside = [leaf for _, leaf in self._outside.values()]
        sources = [x for x in (*self._returned, *outside) if x.requires_grad]
        outputs = [x for x in (*self._glue, loss) if x.requires_grad]
        if outputs and sources:
            ones = [torch.ones_like(x, requires_grad=True) for x in outputs]  # else a mark is left out
            first = torch.autograd.grad(outputs, sources, ones, create_graph=True, allow_unused=True)
            self._note(ONCE, found=is_marked(first))
            del first
        if self._stack.token_inputs and self._last is not None and loss.requires_grad:
            self._head(self._last, loss, labels.to(found.device))

    def _head(self, last: torch.Tensor, loss: torch.Tensor, labels: torch.Tensor) -> None:
        hidden = last.detach().flatten(0, 1).requires_grad_()
        output = cross_entropy(self._stack.head(hidden), labels).sum()
        read = reached([output])
        own: Own = {name: (p, [self._random(p)]) for name, (_, p) in self._outside.items() if id(p) in read}
        along = [self._random(hidden)]
        params, tangents = [p for p, _ in own.values()], [t for _, t in own.values()]
        one: list[torch.Tensor | None] = [torch.ones_like(loss)]
        if last.requires_grad:
            ends = [last, *params]
            truth = self._truth([loss], one, ends, [along[0].view_as(last), *(t for (t,) in tangents)])
            truth = [
                [None if x is None else x.reshape(s.shape) for x, s in zip(parts, (hidden, *params), strict=True)]
                for parts in truth
            ]
            self._check_pull(Piece([output], [hidden], params, [along, *tangents]), one, truth)
        self._check_push(lambda at, weights: self._stack.head(at[0], weights), [hidden.detach()], [along], own)

    def _truth(
        self, outputs: Sequence[torch.Tensor], cotangents: Parts, sources: Sequence[torch.Tensor], tangents: Parts
    ) -> list[list[torch.Tensor | None]]:
        """J^T g and (dJ)^T g of each source, by double backward: the gradient of g . f, and of that along tangents."""
        # Where g has no graph, torch does not mark what it goes into: the gradient is taken for a constant.
        live = [None if g is None else g.detach().requires_grad_() for g in cotangents]
        first = torch.autograd.grad(outputs, sources, live, create_graph=True, allow_unused=True)
        self._note(ONCE, found=is_marked(first))
        pairs = zip(first, tangents, strict=True)
        slopes = [(g * t).sum() for g, t in pairs if g is not None and t is not None and g.requires_grad]
        second: Parts = [None] * len(sources)
        if slopes:
            second = torch.autograd.grad(slopes, sources, allow_unused=True)
        return [[None if g is None else g.detach() for g in first], list(second)]

    def _check_pull(self, piece: Piece, cotangents: Parts, truth: Sequence[Parts]) -> None:
        still = [[None] for _ in cotangents]
        first, seconds = pull_back(piece, cotangents, still, num_vectors=1, keep=False, gradient=True)
        worst = max(self._excess(a, b) for a, b in zip((first, *seconds), truth, strict=True))
        self._note("on a short row it does not agree with double backward", found=not worst <= 1.0)

    def _check_push(
        self, run: Run, values: Sequence[torch.Tensor], along: Sequence[Sequence[torch.Tensor | None]], own: Own
    ) -> None:
        found = []
        for forward_mode in (True, False):
            values = [x.detach() for x in values]
            _, pushed = LayerPush(forward_mode=forward_mode)(run, values, along, own, num_vectors=1)
            found.append([t for (t,) in pushed])
        fault = "on a short row forward mode does not agree with reverse mode"
        self._note(fault, found=not self._excess(*found) <= 1.0)

    def _note(self, fault: str, *, found: bool) -> None:
        if found and self.fault is None:
            self.fault = fault

    def _excess(self, product: Parts, truth: Parts) -> float:
        """The largest difference of a part, over what rounding explains."""
        pairs = [(a, b) for a, b in zip(product, truth, strict=True) if a is not None or b is not None]
        sizes = [_norm(b) for _, b in pairs]
        errors = [_norm(b if a is None else a if b is None else a.to(b.dtype) - b) for a, b in pairs]
        return excess(sizes, errors, self._allowed)

    def _random(self, x: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, x.shape, generator=self._generator, dtype=torch.int8)
        return (2 * signs - 1).to(x.device, x.dtype)


def excess(sizes: Sequence[float], errors: Sequence[float], allowed: float) -> float:
    """The largest error over what it may be, of parts of these sizes: small ones have the roundings of the others."""
    whole = sum(size**2 for size in sizes) ** 0.5
    if whole == 0.0:
        return float("inf") if any(errors) else 0.0
    if allowed == 0.1:  # narrow weights: a part that is zero in truth is nothing but the rounding of others
        return sum(error**2 for error in errors) ** 0.5 / (allowed * whole)
    return max(error / (allowed * max(size, 0.3 * whole)) for size, error in zip(sizes, errors, strict=True))


def _floats(out: Any) -> list[torch.Tensor]:
    leaves, _ = tree_flatten(out)
    return [leaves[i] for i in float_places(leaves)]


def _replaced(leaves: Sequence[Any], places: Sequence[int], values: Sequence[torch.Tensor]) -> list[Any]:
    out = list(leaves)
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return out


def _norm(x: torch.Tensor | None) -> float:
    return 0.0 if x is None else float(torch.linalg.vector_norm(x, dtype=torch.float64))
