"""The exact Hessian by differentiating the gradient (Pearlmutter 1994), one batch at a time.

Cost in gradients: 3 for a product, 2 where the first backward's graph is kept between products. The graph
holds about three times a gradient's activations. Where v is zero in a part, the way through its gradient is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hesscli.curvature.fingerprint import fingerprint
from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk, add_into
from hesscli.linalg.space import ParameterSpace, ParameterVector


@dataclass(frozen=True, slots=True)
class _Graph:
    """Gradients of one batch's loss that depend on the parameters, with the parameters' places."""

    places: tuple[int, ...]
    gradients: tuple[torch.Tensor, ...]


class HessianOperator:
    """The Hessian of a risk over its selected parameters.

    With `keep_graph` the first backward of every batch is made once, and again after a weight or a buffer was
    changed: torch itself notices that only for what the graph has saved, which an embedding is not, and never where
    it was written to through `p.data`.
    """

    def __init__(self, risk: EmpiricalRisk, *, keep_graph: bool) -> None:
        self.risk, self.keep_graph = risk, keep_graph
        self._graphs: dict[int, _Graph] = {}
        self._made_from: tuple[int, ...] = ()

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self.risk.space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """H v: 3 gradients, or 2 with the graph kept."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """H v for k vectors: 1 + 2k gradients, or 2k with the graph kept. Holds k results."""
        totals = [self.space.zeros() for _ in vs]
        if self.keep_graph:
            now = fingerprint([*self.risk.model.parameters(), *self.risk.model.buffers()])
            if now != self._made_from:
                self._graphs.clear()
                self._made_from = now
        with twice_differentiable_attention():
            for i in range(len(self.risk.batches)):
                graph = self._graph(i)
                for number, (v, total) in enumerate(zip(vs, totals, strict=True)):
                    last = number == len(vs) - 1 and not self.keep_graph
                    add_into(total, self._differentiate(graph, v, last=last))
                del graph
        for total in totals:
            self.space.scale(1.0 / self.risk.num_terms, total)
        return totals

    def _graph(self, i: int) -> _Graph:
        if i in self._graphs:
            return self._graphs[i]
        parameters = self.risk.parameters
        # autograd.grad, never backward(create_graph=True): that leaks the parameters through a cycle.
        loss = self.risk.batch_loss(self.risk.batches[i])
        if not loss.requires_grad:  # no selected weight is reached, as an expert without tokens
            return _Graph((), ())
        grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        places = tuple(p for p, g in enumerate(grads) if g is not None and g.requires_grad)
        graph = _Graph(places, tuple(g for g in grads if g is not None and g.requires_grad))
        if self.keep_graph:
            self._graphs[i] = graph
        return graph

    def _differentiate(self, graph: _Graph, v: ParameterVector, *, last: bool) -> Sequence[torch.Tensor | None]:
        # A part that is zero is left out, and with it the graph that leads to its gradient alone.
        moved = [(g, v[p].to(g.dtype)) for p, g in zip(graph.places, graph.gradients, strict=True) if bool(v[p].any())]
        if not moved:
            return [None] * len(self.risk.parameters)
        gradients, directions = zip(*moved, strict=True)
        return torch.autograd.grad(
            gradients, self.risk.parameters, directions, retain_graph=not last, allow_unused=True
        )
