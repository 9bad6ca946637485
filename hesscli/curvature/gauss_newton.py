"""Positive semi-definite curvature: the generalised Gauss-Newton matrix and two Fisher matrices.

With J the Jacobian of the model's scores and L the loss of a term (Schraudolph 2002; Kunstner, Balles and Hennig
2019 on why the last must not pass for the second):

    GGN               G = 1/N sum_t J_t^T (diag p_t - p_t p_t^T) J_t
    Fisher            F = 1/N sum_t E_{y ~ p_t} g_t(y) g_t(y)^T = G for a softmax; here with sampled labels
    empirical Fisher  E = 1/N sum_t g_t g_t^T, gradients g_t at the labels of the data

Cost in gradients: 2 for a product (a forward pass with tangents 1, a gradient 1), 1/3 + 5k/3 for k vectors.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk, add_into
from hesscli.data.slice import IGNORED, Batch
from hesscli.linalg.random import element_key, uniform
from hesscli.linalg.space import ParameterSpace, ParameterVector

_CHUNK = 4096  # positions whose scores are brought to float32 at a time


class OuterProductOperator(ABC):
    """A sum of J_t^T C_t J_t over loss terms. A kind of it is the product with C_t alone."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        self.risk = risk

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self.risk.space

    @abstractmethod
    def curve(self, logits: torch.Tensor, tangents: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """C_t J_t v at each position, (positions, vocabulary), from scores and tangents of that shape."""

    def labels(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """The labels that the terms are taken at, (positions,); `IGNORED` where there is no term."""
        return batch.targets.flatten().to(logits.device)

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
                targets = self.labels(batch, logits.detach().flatten(0, 1))
                for number, (v, total) in enumerate(zip(vs, totals, strict=True)):
                    cotangent = self._cotangent(inputs, v, targets).view_as(logits)
                    parts = torch.autograd.grad(
                        logits, self.risk.parameters, cotangent, retain_graph=number < len(vs) - 1, allow_unused=True
                    )
                    add_into(total, parts)
        for total in totals:
            self.space.scale(1.0 / self.risk.num_terms, total)
        return totals

    def _cotangent(self, inputs: dict[str, Any], v: ParameterVector, targets: torch.Tensor) -> torch.Tensor:
        """C J v: the model runs once with tangents and without a graph, then the terms by chunks of positions."""
        names = self.space.names
        with torch.no_grad(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(p.detach(), part.to(p.dtype))
                for name, p, part in zip(names, self.risk.parameters, v, strict=True)
            }
            found = scores(lambda **given: functional_call(self.risk.model, duals, kwargs=given), inputs)
            logits, tangents = forward_ad.unpack_dual(found)
            if tangents is None:
                return torch.zeros_like(logits).flatten(0, 1)
            out = torch.zeros_like(logits).flatten(0, 1)
            for chunk in (targets != IGNORED).nonzero().squeeze(1).split(_CHUNK):
                wide = torch.promote_types(logits.dtype, torch.float32)
                part = logits.flatten(0, 1)[chunk].to(wide), tangents.flatten(0, 1)[chunk].to(wide)
                out[chunk] = self.curve(*part, targets[chunk]).to(out.dtype)
        return out


class GGNOperator(OuterProductOperator):
    """The generalised Gauss-Newton matrix, by the softmax cross-entropy's Hessian in closed form."""

    def curve(self, logits: torch.Tensor, tangents: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """(diag p - p p^T) J v."""
        p = torch.softmax(logits, dim=-1)
        return p * (tangents - (p * tangents).sum(dim=-1, keepdim=True))


class EmpiricalFisherOperator(OuterProductOperator):
    """Outer products of the gradients of single terms at the labels of the data. Not the Fisher matrix."""

    def curve(self, logits: torch.Tensor, tangents: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(p - e_y) ((p - e_y) . J v)."""
        residual = torch.softmax(logits, dim=-1)
        residual[torch.arange(len(targets), device=targets.device), targets] -= 1.0
        return residual * (residual * tangents).sum(dim=-1, keepdim=True)


class FisherOperator(EmpiricalFisherOperator):
    """The Fisher matrix of the model, by labels that are drawn once from its own predictions.

    A draw depends on (seed, row, position) alone, so every product is with the same matrix.
    """

    def __init__(self, risk: EmpiricalRisk, *, seed: int) -> None:
        super().__init__(risk)
        self._seed = seed

    def labels(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Sampled labels where the data has a term."""
        targets = super().labels(batch, logits)
        rows, length = batch.targets.shape
        points = torch.cat(
            [
                uniform(element_key(self._seed, batch.first_row + row, "labels"), 0, length, device=logits.device)
                for row in range(rows)
            ]
        )
        drawn = targets.clone()
        for chunk in (targets != IGNORED).nonzero().squeeze(1).split(_CHUNK):
            cumulative = torch.softmax(logits[chunk].double(), dim=-1).cumsum(dim=-1)
            places = torch.searchsorted(cumulative, points[chunk].unsqueeze(1) * cumulative[:, -1:])
            drawn[chunk] = places.squeeze(1).clamp_(max=logits.shape[-1] - 1)
        return drawn
