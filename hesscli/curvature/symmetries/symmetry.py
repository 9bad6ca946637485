"""A direction whose product is known, from all symmetries of a model together."""

from dataclasses import dataclass

import torch

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries.generator import Field, fields, weighted
from hesscli.curvature.symmetries.orbit import Orbit
from hesscli.curvature.symmetries.search import Candidate, Scaling, search
from hesscli.linalg.space import ParameterVector

# Balances that differ by less than this part are candidates; the loss decides. Symmetries show 1e-7 in float32 and
# 1e-2 in bfloat16, other pairs about 1.
_CANCEL, _CANCEL_NARROW = 1e-3, 0.1
# A product along a shift is zero, so all of it is error, and of a size that goes with the vector's length: much of it
# would drown the relative error of the rest.
_SHIFT = 0.03


@dataclass(frozen=True, slots=True)
class Symmetry:
    """The vector field X on the selected parameters, by name; zero on all others."""

    fields: dict[str, Field]
    candidates: tuple[Candidate, ...]
    """What it is the sum of."""

    def direction(self, risk: EmpiricalRisk) -> ParameterVector:
        """X(theta): the direction whose product is known."""
        out, space = risk.space.zeros(), risk.space
        for part, name, p in zip(out, space.names, risk.parameters, strict=True):
            if name in self.fields:
                part.copy_(self.fields[name].scaled(p.detach().to(part.dtype)))
        added = {i: self.fields[n].shift for i, n in enumerate(space.names) if n in self.fields}
        shifts = {i: shift.expand(space.shapes[i]) for i, shift in added.items() if isinstance(shift, torch.Tensor)}
        length = sum(float(shift.square().sum(dtype=torch.float64)) for shift in shifts.values()) ** 0.5
        size = _SHIFT * space.norm(out)
        for i, shift in shifts.items():
            out[i].add_(shift, alpha=size / length)
        return out

    def answer(self, risk: EmpiricalRisk, gradient: ParameterVector) -> ParameterVector:
        """-C grad L: what the Hessian gives along it. A GGN or Fisher matrix gives zero."""
        out = risk.space.zeros()
        for part, name, g in zip(out, risk.space.names, gradient, strict=True):
            if name in self.fields:
                part.copy_(-self.fields[name].scale * g)
        return out


def find_symmetry(risk: EmpiricalRisk, gradient: ParameterVector, *, seed: int) -> Symmetry | None:
    """Every symmetry of the selected parameters that the gradient shows and the loss of one row confirms.

    All weights that take part in one must be selected. Costs a few passes over weights and gradient, and three
    forward passes of one row or a few more; holds a copy of the weights that are moved. None where no scaling is
    confirmed: shifts alone have no length to read an error in.
    """
    weights = {name: p.detach() for name, p in zip(risk.space.names, risk.parameters, strict=True)}
    slopes = dict(zip(risk.space.names, gradient, strict=True))
    wide = all(w.dtype in (torch.float32, torch.float64) for w in weights.values())
    found = list(search(risk.model, weights, slopes, tolerance=_CANCEL if wide else _CANCEL_NARROW))
    # A row with a term: without any, the loss is zero all along every direction.
    confirmed = Orbit(risk.first_row(), weights, seed=seed).confirmed(found) if found else []
    if not any(isinstance(candidate, Scaling) for candidate in confirmed):
        return None
    return Symmetry(fields(confirmed, weights, weighted(weights, slopes), seed=seed), tuple(confirmed))
