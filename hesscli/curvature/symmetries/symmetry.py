"""A direction whose product is known, from all symmetries of a model together."""

from dataclasses import dataclass

import torch

from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries.generator import Field, fields, weighted
from hesscli.curvature.symmetries.orbit import Orbit
from hesscli.curvature.symmetries.search import Candidate, Scaling, search
from hesscli.linalg.mapped import release
from hesscli.linalg.space import ParameterVector

# Balances that differ by less than this part are candidates; the loss decides. Symmetries show 1e-7 in float32 and
# 1e-2 in bfloat16, other pairs about 1. In bfloat16 the loss cannot tell all: a pair at 0.05 passed for a gain.
_CANCEL, _CANCEL_NARROW = 1e-3, 0.1
# A product along a shift is zero, so all of it is error, and of a size that goes with the vector's length: much of it
# would drown the relative error of the rest.
_SHIFT = 0.03
# Whole copies of the selected weights that are held where processes share them, and the part of free memory for it.
_COPIES, _SHARE = 4, 0.5


@dataclass(frozen=True, slots=True)
class Symmetry:
    """The vector field X on the selected parameters, by name; zero on all others."""

    fields: dict[str, Field]
    candidates: tuple[Candidate, ...]
    """What it is the sum of."""

    def direction(self, risk: EmpiricalRisk) -> ParameterVector:
        """X(theta): the direction whose product is known."""
        out, space = risk.space.zeros(), risk.space
        for i, (part, name) in enumerate(zip(out, space.names, strict=True)):
            if name in self.fields:
                part.copy_(space.own(i, self.fields[name].scaled(risk.weight(i).to(part.dtype))))
                release(part)
        added = {i: self.fields[n].shift for i, n in enumerate(space.names) if n in self.fields}
        shifts = {i: shift.expand(space.shapes[i]) for i, shift in added.items() if isinstance(shift, torch.Tensor)}
        length = sum(float(shift.square().sum(dtype=torch.float64)) for shift in shifts.values()) ** 0.5
        size = _SHIFT * space.norm(out)
        for i, shift in shifts.items():
            release(out[i].add_(space.own(i, shift), alpha=size / length))
        return out

    def answer(self, risk: EmpiricalRisk, gradient: ParameterVector) -> ParameterVector:
        """-C grad L: what the Hessian gives along it. A GGN or Fisher matrix gives zero."""
        out, space = risk.space.zeros(), risk.space
        for i, (part, name, g) in enumerate(zip(out, space.names, gradient, strict=True)):
            if name in self.fields:
                scale = torch.as_tensor(self.fields[name].scale)
                part.copy_(-space.own(i, scale.expand(space.shapes[i])) * g)
                release(part, g)
        return out


def find_symmetry(risk: EmpiricalRisk, gradient: ParameterVector, *, seed: int) -> Symmetry | None:
    """Every symmetry of the selected parameters that the gradient shows and the loss of one row confirms.

    All weights that take part in one must be selected. Costs a few passes over weights and gradient, and three
    forward passes of one row or a few more; holds a copy of the weights that are moved. None where no scaling is
    confirmed: shifts alone have no length to read an error in.
    """
    space = risk.space
    if space.ranks.size > 1 and not _fits(risk):
        return None
    weights = risk.weights()
    slopes = {name: space.whole(i, g) for i, (name, g) in enumerate(zip(space.names, gradient, strict=True))}
    # Of all weights: a narrow base model rounds the gradient of a wide adapter too.
    wide = all(p.dtype in (torch.float32, torch.float64) for p in risk.model.parameters())
    confirmed: list[Candidate] = []
    for tolerance in (_CANCEL,) if wide else (_CANCEL, _CANCEL_NARROW):  # the gradient may be in float32 all the same
        found = list(search(risk.model, weights, slopes, tolerance=tolerance))
        # A row with a term: without any, the loss is zero all along every direction.
        confirmed = Orbit(risk.first_row(), weights, seed=seed).confirmed(found) if found else []
        if any(isinstance(candidate, Scaling) for candidate in confirmed):
            break
    else:
        return None
    return Symmetry(fields(confirmed, weights, weighted(weights, slopes), seed=seed), tuple(confirmed))


def _fits(risk: EmpiricalRisk) -> bool:
    """Whether every process has room for what shards are put together for: weights, gradient, and what is moved."""
    needed = _COPIES * risk.space.dimension * max(p.dtype.itemsize for p in risk.parameters)
    room = min(available_bytes(device) for device in set(risk.space.devices))
    return bool(risk.space.ranks.least(int(needed <= _SHARE * room)))
