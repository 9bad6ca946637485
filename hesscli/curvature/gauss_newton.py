"""Positive semi-definite curvature: the generalised Gauss-Newton matrix and two Fisher matrices.

With J the Jacobian of the model's scores, (1/N) sum_t J_t^T C_t J_t for the C_t of `score_curvature`.

Cost in gradients: 2 for a product (a forward pass with tangents 1, a gradient 1), 1/3 + 5k/3 for k vectors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from hesscli.curvature.layers.pull_back import reached
from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk, add_into
from hesscli.curvature.score_curvature import LabelCurvature, ScoreCurvature, SoftmaxCurvature, curve_all
from hesscli.curvature.substituted import run_with
from hesscli.data.slice import Batch
from hesscli.linalg.space import ParameterSpace, ParameterVector


class OuterProductOperator:
    """A sum of J_t^T C_t J_t over loss terms, with the graph of one batch at a time."""

    def __init__(self, risk: EmpiricalRisk, curvature: ScoreCurvature) -> None:
        self.risk, self._curvature = risk, curvature

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self.risk.space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """The product: 2 gradients."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """The products, one graph for all: 1/3 + 5k/3 gradients. Holds k results and a gradient's graph."""
        totals = [self.space.zeros() for _ in vs]
        with twice_differentiable_attention():
            for batch in self.risk.batches:
                inputs = self.risk.inputs(batch)
                logits = scores(self.risk.model, inputs)
                if not logits.requires_grad:  # no selected weight is reached, as an expert without tokens
                    continue
                moving = reached([logits])
                for number, (v, total) in enumerate(zip(vs, totals, strict=True)):
                    cotangent = self._cotangent(inputs, v, moving, batch).view_as(logits)
                    parts = torch.autograd.grad(
                        logits, self.risk.parameters, cotangent, retain_graph=number < len(vs) - 1, allow_unused=True
                    )
                    add_into(total, parts)
        for total in totals:
            self.space.scale(1.0 / self.risk.num_terms, total)
        return totals

    def _cotangent(self, inputs: dict[str, Any], v: ParameterVector, moving: set[int], batch: Batch) -> torch.Tensor:
        """C J v: the model runs once with tangents and without a graph, then the terms by chunks of positions."""
        with torch.no_grad(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(p.detach(), part.to(p.dtype))
                for name, p, part in zip(self.space.names, self.risk.parameters, v, strict=True)
                if id(p) in moving
            }
            found = scores(lambda **given: run_with(self.risk.model, duals, kwargs=given), inputs)
            logits, tangents = forward_ad.unpack_dual(found)
            if tangents is None:
                return torch.zeros_like(logits).flatten(0, 1)
            return curve_all(self._curvature, batch, logits.flatten(0, 1), tangents.flatten(0, 1))


class GGNOperator(OuterProductOperator):
    """The generalised Gauss-Newton matrix, by the softmax cross-entropy's Hessian in closed form."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        super().__init__(risk, SoftmaxCurvature())


class EmpiricalFisherOperator(OuterProductOperator):
    """Outer products of the gradients of single terms at the labels of the data. Not the Fisher matrix."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        super().__init__(risk, LabelCurvature())
