"""Is the gradient the derivative of the loss, and the product that of the gradient? Asked in float64, along a line.

In float32 rounding hides a fault of 1e-2; in float64 one of 1e-6 shows, in whatever tensor it is, and the steps are so
short that hardly a kink lies within them. Nothing here is differentiated more often than what it is held against: the
gradient is held against the loss alone, the Hessian against gradients, and a Gauss-Newton matrix, which is no
derivative of the loss, against the scores alone.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hesscli.curvature.choice import Kind
from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import LabelCurvature, SampledLabelCurvature, SoftmaxCurvature, curve_all
from hesscli.curvature.substituted import run_with
from hesscli.curvature.trust.line import Mismatch
from hesscli.curvature.trust.wide import float64_throughout
from hesscli.data.slice import IGNORED, Batch
from hesscli.linalg.space import ParameterVector

FAULTY = 1e-3
"""A mismatch above this is a fault: over a hundred architectures sound ones showed 1e-9 to 1e-6."""
_STEP = 1e-7  # of the weights' length: kinks within it are rare, and roundings of float64 are 1e-9 of a quotient
_LONGER = 4.0  # a second step: what two steps do not agree on is rounding or a kink, and decides nothing
_SETTLED = 0.1  # of a mismatch
_SMALL_PART = 1e-2
_SEED_OFFSET = (1 << 40) + 2  # a sample index that nothing else draws


def mismatches(
    risk: EmpiricalRisk,
    gradient: ParameterVector,
    product: Callable[[ParameterVector], ParameterVector],
    *,
    kind: Kind,
    seed: int,
) -> Mismatch:
    """Of a risk in float64, its gradient and product at theta: the relative mismatches along a random line.

    The slope is over ||g|| / sqrt(n) if that is longer. The Hessian's is the largest distance of a parameter's part
    of H v from a difference of gradients, over the part's length or 0.01 of all, if longer. That of a Gauss-Newton
    matrix is of v.Gv over ||Gv|| / sqrt(n) if longer; labels of a Fisher matrix are those that the risk has. None where
    two steps do not agree, as where the model's code computes in less. Costs a product, and at two steps two forward
    passes each (Hessian: and two gradients); holds five vectors.
    """
    space = risk.space
    v = space.random("gaussian", seed=seed, index=_SEED_OFFSET)
    space.scale(1.0 / space.norm(v), v)
    root = float(np.sqrt(space.dimension))
    with float64_throughout():
        steps = [_STEP * risk.weights_norm() * factor for factor in (1.0, _LONGER)]
        slope, size = space.inner(gradient, v), space.norm(gradient) / root
        if size == 0.0 or steps[0] == 0.0:
            return Mismatch(None, None)
        ends = [[risk.loss_along(v, sign * step) for sign in (1.0, -1.0)] for step in steps]
        slopes = [(a - b) / (2 * step) - slope for (a, b), step in zip(ends, steps, strict=True)]
        first = _decided([abs(s) for s in slopes], abs(slopes[0] - slopes[1]), max(abs(slope), size))
        found = product(v)
        length = space.norm(found)
        if length == 0.0:
            return Mismatch(first, None)
        if kind == "hessian":
            differences = [_gradient_difference(risk, v, step) for step in steps]
            apart = _distance(risk, *differences, of=found)
            return Mismatch(first, _decided([_distance(risk, d, found, of=found) for d in differences], apart, 1.0))
        form = space.inner(v, found)
        forms = [_form_of_scores(risk, v, step, kind) - form for step in steps]
        return Mismatch(first, _decided([abs(f) for f in forms], abs(forms[0] - forms[1]), max(form, length / root)))


def drawn_labels(risk: EmpiricalRisk, *, seed: int) -> list[Batch]:
    """The batches with labels drawn from the model's predictions in the place of the data's.

    With these the empirical Fisher matrix is the Fisher matrix of that seed. Holds the scores of one batch.
    """
    out = []
    with torch.no_grad(), twice_differentiable_attention():
        for batch in risk.batches:
            logits = scores(risk.model, risk.inputs(batch)).flatten(0, 1)
            terms = (batch.targets.flatten() != IGNORED).nonzero().squeeze(1)
            wide = logits[terms.to(logits.device)].to(torch.promote_types(logits.dtype, torch.float32))
            targets = batch.targets.clone()
            drawn = SampledLabelCurvature(seed=seed).labels(batch, terms.to(logits.device), wide)
            targets.view(-1)[terms] = drawn.to(targets.device)
            out.append(replace(batch, targets=targets))
    return out


def _decided(wrong: list[float], apart: float, size: float) -> float | None:
    """The mismatch, where steps agree far better with each other than with what is held against them."""
    least = min(wrong)
    return least / size if least <= FAULTY * size or apart <= _SETTLED * least else None


def _gradient_difference(risk: EmpiricalRisk, v: ParameterVector, step: float) -> ParameterVector:
    space, total = risk.space, risk.space.zeros()
    with twice_differentiable_attention():
        for sign in (1.0, -1.0):
            moved = {
                name: torch.add(p.detach(), part, alpha=sign * step).requires_grad_()
                for name, p, part in zip(space.names, risk.parameters, v, strict=True)
            }
            gradient = space.zeros()
            for batch in risk.batches:
                risk.add_gradient(batch, list(moved.values()), gradient, moved)
            space.axpy(sign / (2 * step * risk.num_terms), gradient, total)
    return total


def _form_of_scores(risk: EmpiricalRisk, v: ParameterVector, step: float, kind: Kind) -> float:
    """(1/N) sum_t (J_t v) . C_t (J_t v), with J v from differences of the scores."""
    curvature = SoftmaxCurvature() if kind == "ggn" else LabelCurvature()
    total = 0.0
    with torch.no_grad(), twice_differentiable_attention():
        for batch in risk.batches:
            sides = [_scores_along(risk, batch, v, sign * step) for sign in (1.0, -1.0, 0.0)]
            tangents = (sides[0] - sides[1]) / (2 * step)
            total += float((tangents * curve_all(curvature, batch, sides[2], tangents)).sum())
    return total / risk.num_terms


def _scores_along(risk: EmpiricalRisk, batch: Batch, v: ParameterVector, step: float) -> torch.Tensor:
    moved = {
        name: torch.add(p.detach(), part, alpha=step)
        for name, p, part in zip(risk.space.names, risk.parameters, v, strict=True)
    }
    return scores(lambda **given: run_with(risk.model, moved, kwargs=given), risk.inputs(batch)).flatten(0, 1)


def _distance(risk: EmpiricalRisk, a: ParameterVector, b: ParameterVector, *, of: ParameterVector) -> float:
    """The largest distance of a parameter's part over the length of that part of `of`, a hundredth of all at least."""
    space = risk.space
    difference = space.copy(a)
    space.axpy(-1.0, b, difference)
    sizes = np.sqrt(space.inners(of, of))
    least = _SMALL_PART * float(np.sqrt(np.square(sizes).sum()))
    return float((np.sqrt(space.inners(difference, difference)) / np.maximum(sizes, least)).max())
