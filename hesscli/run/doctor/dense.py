"""Curvature matrices of a small set of parameters, dense and in float64, by torch.func: none of hess's products."""

import copy

import torch
from torch import nn
from torch.func import functional_call, hessian, jacfwd
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import SampledLabelCurvature
from hesscli.data.slice import IGNORED


def dense_matrices(risk: EmpiricalRisk, *, seed: int) -> dict[str, torch.Tensor]:
    """The Hessian, GGN, Fisher and empirical Fisher matrix of a risk of one batch, each (n, n) float64 on the host.

    Holds a float64 copy of the model, the Jacobian of every score, and n tangents through the gradient.
    """
    (batch,) = risk.batches
    model = copy.deepcopy(risk.model).double()
    whole = dict(model.named_parameters())
    theta = torch.cat([whole[name].detach().reshape(-1) for name in risk.space.names])
    inputs, targets = risk.inputs(batch), batch.targets.flatten().to(theta.device)
    kept = targets != IGNORED

    def scores(flat: torch.Tensor) -> torch.Tensor:
        given = _parts(flat, risk)
        logits: torch.Tensor = functional_call(model, given, kwargs=inputs).logits
        return logits.flatten(0, 1)[kept]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(scores(flat), targets[kept])

    with sdpa_kernel(SDPBackend.MATH):
        found = {"hessian": hessian(loss)(theta).detach()}
        jacobian = jacfwd(scores)(theta).detach()  # (terms, classes, n)
        logits = scores(theta).detach()
    p, terms = torch.softmax(logits, dim=-1), len(logits)
    mean = torch.einsum("tv,tvn->tn", p, jacobian)
    found["ggn"] = (torch.einsum("tv,tvn,tvm->nm", p, jacobian, jacobian) - mean.T @ mean) / terms
    drawn = _drawn(risk, seed=seed)[kept]
    for kind, labels in (("fisher", drawn), ("empirical-fisher", targets[kept])):
        gradients = mean - jacobian[torch.arange(terms, device=labels.device), labels]
        found[kind] = gradients.T @ gradients / terms
    return {kind: matrix.cpu() for kind, matrix in found.items()}


def _parts(flat: torch.Tensor, risk: EmpiricalRisk) -> dict[str, torch.Tensor]:
    pieces = flat.split(list(risk.space.numels))
    return {
        name: piece.view(shape) for name, piece, shape in zip(risk.space.names, pieces, risk.space.shapes, strict=True)
    }


def _drawn(risk: EmpiricalRisk, *, seed: int) -> torch.Tensor:
    """The labels of the Fisher matrix: drawn, hence the one thing that is taken from hess."""
    (batch,) = risk.batches
    model: nn.Module = risk.model
    with torch.no_grad():
        logits = model(**risk.inputs(batch)).logits.flatten(0, 1)
    everywhere = torch.arange(len(logits), device=logits.device)
    return SampledLabelCurvature(seed=seed).labels(batch, everywhere, logits)
