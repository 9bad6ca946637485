"""Products with a known answer on any checkpoint, from the network's own continuous symmetries.

Where scaling rows of one weight and the matching columns of the next by opposite factors leaves the loss unchanged,
L(S_t theta) = L(theta) with S_t = exp(t C), differentiating twice gives (Kunin et al. 2021, arXiv 2012.04728)

    H (C theta) = -C grad L(theta).

So the error of a product is measured, not guessed. C has a random entry for each channel: with one common factor
the terms cancel bit for bit, and the error of any product reads 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.linalg.random import element_key, gaussian
from hesscli.linalg.space import ParameterVector

# (writes, reads): what one projection writes, channel by channel, reaches the loss through the other alone, and
# linearly. A name is a guess; the loss along the orbit decides.
_PAIRS = (("up_proj", "down_proj"), ("v_proj", "o_proj"), ("v_proj", "out_proj"), ("v_proj", "dense"))
_ORBIT = 0.3  # how far along the orbit: factors of exp(0.3 c)
_UNCHANGED = 1e-4  # of the loss; a direction that is none changes it by 1e-2 and more


@dataclass(frozen=True, slots=True)
class Symmetry:
    """The diagonal of C on the selected parameters, by name; zero on all others."""

    factors: dict[str, torch.Tensor]

    def direction(self, risk: EmpiricalRisk) -> ParameterVector:
        """C theta: the direction whose product is known."""
        out = risk.space.zeros()
        for i, (name, p) in enumerate(zip(risk.space.names, risk.parameters, strict=True)):
            if name in self.factors:
                out[i].copy_(p.detach().to(out[i].dtype) * self.factors[name])
        return out

    def answer(self, risk: EmpiricalRisk, gradient: ParameterVector) -> ParameterVector:
        """-C grad L: what the Hessian gives along it. A GGN or Fisher matrix gives zero."""
        out = risk.space.zeros()
        for i, name in enumerate(risk.space.names):
            if name in self.factors:
                out[i].copy_(-self.factors[name] * gradient[i])
        return out


def find_symmetry(risk: EmpiricalRisk, *, seed: int) -> Symmetry | None:
    """Every scaling symmetry found by structure, and confirmed by the loss of one row along its orbit.

    Both weights of a pair must be among the selected parameters. Costs two forward passes on one row for each kind
    of pair; holds a copy of the scaled weights. None where nothing is found or confirmed.
    """
    factors: dict[str, torch.Tensor] = {}
    row = risk.first_row()  # one with a term: without any, the loss is zero all along every direction
    for pair in _PAIRS:
        found = _scalings(risk, pair, seed)
        if found and not factors.keys() & found.keys() and _loss_unchanged(row, found):
            factors |= found
    return Symmetry(factors) if factors else None


def _scalings(risk: EmpiricalRisk, pair: tuple[str, str], seed: int) -> dict[str, torch.Tensor]:
    """The diagonal of C for every module that owns such a pair of linear maps, all of it selected."""
    out: dict[str, torch.Tensor] = {}
    for name, module in risk.model.named_modules():
        writer, reader = getattr(module, pair[0], None), getattr(module, pair[1], None)
        if not isinstance(writer, nn.Linear) or not isinstance(reader, nn.Linear):
            continue
        repeats, odd = divmod(reader.in_features, writer.out_features)
        if odd or not repeats:
            continue
        key = element_key(seed, 0, f"{name}.{pair[0]}")
        c = gaussian(key, 0, writer.out_features, device=writer.weight.device).float()
        found = {f"{name}.{pair[0]}.weight": c[:, None].expand_as(writer.weight)}
        if writer.bias is not None:
            found[f"{name}.{pair[0]}.bias"] = c
        # Grouped heads: each head of values is read by `repeats` heads of queries, one after the other.
        width = int(getattr(module, "head_dim", writer.out_features))
        read = c.view(-1, width).repeat_interleave(repeats, dim=0).flatten() if repeats > 1 else c
        found[f"{name}.{pair[1]}.weight"] = -read.to(reader.weight.device)[None, :].expand_as(reader.weight)
        if found.keys() <= set(risk.space.names):
            out |= found
    return out


def _loss_unchanged(row: EmpiricalRisk, factors: Mapping[str, torch.Tensor]) -> bool:
    weights = dict(row.model.named_parameters())
    moved = {n: weights[n].detach() * torch.exp(_ORBIT * c).to(weights[n].dtype) for n, c in factors.items()}
    before, after = _loss(row, {}), _loss(row, moved)
    tolerance = max(_UNCHANGED, 4 * max(float(torch.finfo(w.dtype).eps) for w in moved.values()))
    return abs(before - after) <= tolerance * abs(before)


def _loss(row: EmpiricalRisk, weights: dict[str, torch.Tensor]) -> float:
    with torch.no_grad(), twice_differentiable_attention():
        return float(row.terms(row.batches[0], weights).sum())
