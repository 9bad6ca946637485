"""Self-tests of a product before anything is built on it; the figures go into the report and its intervals."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hesscli.curvature.differences.kinks import find_kinks
from hesscli.curvature.risk import EmpiricalRisk, LossValue
from hesscli.curvature.symmetries import find_symmetry
from hesscli.curvature.trust.derivatives import FAULTY
from hesscli.curvature.trust.line import Mismatch, mismatch_along
from hesscli.curvature.trust.loss_checks import check_loss
from hesscli.errors import UntrustworthyError
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterSpace, ParameterVector

# An exact float32 product shows 1e-7 to 1e-5, bfloat16 about 1e-2; a gross fault (a wrong transpose, another scale)
# shows 0.1 to 1.
LARGEST_ERROR = 0.05
"""The largest relative error of a product that anything is built on."""
# Product and known answer share the rounding of activations. In float32 the true error along random vectors was 0.4 to
# 8 times the figure over a hundred tiny architectures, 0.7 to 3 times over nine in ten of them, and 3.4 times on a
# trained model of 0.5M parameters: where other vectors are not measured (`rounding.py`, `float64.py`), this is guessed.
_ELSEWHERE = 2.0
_ENOUGH = 0.02  # differences of the loss agree to this with exact derivatives of a smooth model
_STATIONARY = 1e-2  # of a typical product: below this a known answer is too small to be read in its own length
_DEVIATIONS = 4.0  # of a normal number: one run in 30,000 shows more
_SEED_OFFSET = 1 << 40  # sample indices that no probe draws
_NOISE = "the product", "nothing measured with it can be trusted; use --dtype float32 and --attn eager"
_REASONS = {
    "slope": (
        "the gradient against the loss",
        "something is not differentiated; leave its parameters out by --exclude",
    ),
    "curvature": ("the product against the loss", "it is not the matrix of this loss; use another --product"),
}


@dataclass(frozen=True, slots=True)
class Preflight:
    """Relative errors of the product, each about ||e|| / ||H v|| for the error e that it sees."""

    symmetry: float
    """|u.Hv - v.Hu| over (||Hu||^2 + ||Hv||^2)^1/2 / sqrt(n): the relative error that has no structure and gives it."""
    repeat: float
    """||Hv - Hv|| / ||Hv|| for the same product made twice."""
    linearity: float
    """||H(u + v) - Hu - Hv|| / (||Hu|| + ||Hv||)."""
    known_answer: float | None
    """The product's distance from a known one along a symmetry of the network, over its length; None without one."""
    slope: float | None
    """g.u against a difference of the loss alone, over ||g|| / sqrt(n) if longer; None where rounding hides it."""
    curvature: float | None
    """u.Hu against a second difference of the loss alone, over ||Hu|| / sqrt(n) if longer. In float64 the product
    itself against a difference of gradients, a GGN or Fisher matrix's u.Gu against differences of the scores."""
    rounding: float | None = None
    """||Hv - Hv in a wider dtype|| / ||Hv|| over random v, root mean square: float32 with narrow weights, float64 on a
    few short rows with others.

    None of differences, which estimate their errors one by one, and where it was not measured.
    """
    rounding_at_ends: float | None = None
    """The same along vectors that lean to the ends of the spectrum."""
    known_size: float = 1.0
    """The length of the known product over that of a random vector's, where it is shorter; both vectors of length 1."""
    differences: bool = False
    """Whether products are differences of gradients."""

    @property
    def noise(self) -> float:
        """The relative error of products of random vectors, which intervals are widened by.

        Differences of the loss have errors of 1e-2 of their own: they find faults and measure no noise.
        """
        elsewhere = self.differences or self.rounding is not None  # other vectors are measured by themselves
        known = (self.known_size if elsewhere else _ELSEWHERE) * (self.known_answer or 0.0)
        return max(self.symmetry, self.repeat, self.linearity, known, self.rounding or 0.0)

    @property
    def noise_at_ends(self) -> float:
        """The same where figures are of the ends of the spectrum too."""
        return max(self.noise, self.rounding_at_ends or 0.0)


class RefusedProductError(UntrustworthyError):
    """A self-test found too large an error; `found` holds what all of them found."""

    def __init__(self, field: str, what: str, remedy: str, found: Preflight) -> None:
        super().__init__(field, what, remedy)
        self.found = found


def check_product(
    operator: LinearOperator[ParameterVector],
    risk: EmpiricalRisk,
    *,
    loss: LossValue,
    gradient: ParameterVector,
    semi_definite: bool,
    seed: int,
) -> Preflight:
    """Run the self-tests: 5 products, and mostly 12 to 16 forward passes; holds 5 vectors beside the gradient.

    `loss` and `gradient` are those of the risk; `semi_definite`: the operator is a GGN or Fisher matrix, which is
    zero along the symmetries. Raises UntrustworthyError where a product is not finite, and where the loss differs
    between two evaluations or with padding, or where one of a semi-definite matrix has a negative form;
    RefusedProductError where a product is not the same twice, not symmetric,
    not linear or not the known one, and where gradient or product are not derivatives of the loss.
    """
    check_loss(risk, loss)
    space = operator.space
    u = space.random("gaussian", seed=seed, index=_SEED_OFFSET)
    v = space.random("gaussian", seed=seed, index=_SEED_OFFSET + 1)
    for x in (u, v):
        space.scale(1.0 / space.norm(x), x)
    hu, hv = operator.matvec(u), operator.matvec(v)
    norm_u, norm_v = space.norm(hu), space.norm(hv)
    if not np.isfinite(norm_u + norm_v + space.norm(gradient)):
        raise UntrustworthyError(
            "preflight",
            "a product or the gradient holds NaN or Inf",
            "use --dtype float32 --attn eager, or another slice",
        )
    line = _against_the_loss(risk, [(u, hu), (v, hv)], loss, gradient, semi_definite=semi_definite)
    if semi_definite:
        _check_semi_definite(risk.space, [(u, hu), (v, hv)])
    if norm_u == 0 and norm_v == 0:
        return accepted(Preflight(0.0, 0.0, 0.0, None, line.slope, line.curvature), risk)
    skew = abs(space.inner(u, hv) - space.inner(v, hu)) * float(np.sqrt(space.dimension))
    again = operator.matvec(v)
    space.axpy(-1.0, hv, again)
    repeat = space.norm(again) / norm_v
    del again
    space.axpy(1.0, u, v)
    together = operator.matvec(v)
    space.axpy(-1.0, hu, together)
    space.axpy(-1.0, hv, together)
    linearity = space.norm(together) / (norm_u + norm_v)
    del u, v, hu, hv, together
    typical = max(norm_u, norm_v)
    known, size = _known_answer_error(operator, risk, gradient, typical, semi_definite=semi_definite, seed=seed)
    symmetry = skew / float(np.hypot(norm_u, norm_v))
    found = Preflight(symmetry, repeat, linearity, known, line.slope, line.curvature)
    return accepted(replace(found, known_size=min(1.0, size / typical)), risk)


def accepted(found: Preflight, risk: EmpiricalRisk, *, in_float64: Collection[str] = ()) -> Preflight:
    """The same, where every error is below what is let pass.

    `in_float64`: which of slope and curvature were decided there, where a fault shows that is far smaller, and where
    kinks are no matter. Raises RefusedProductError.
    """
    narrow = any(p.dtype != torch.promote_types(p.dtype, torch.float32) for p in risk.model.parameters())
    rounding = () if narrow else ("rounding", "rounding_at_ends")
    for name in ("repeat", "linearity", "symmetry", "known_answer", "slope", "curvature", *rounding):
        error, limit = getattr(found, name) or 0.0, FAULTY if name in in_float64 else LARGEST_ERROR
        if name == "known_answer" and narrow:  # as much as it is of other products: their own error is measured next
            error *= found.known_size
        if error > limit:
            if name in _REASONS and name not in in_float64 and find_kinks(risk):
                continue  # a difference counts the kinks that it crosses, exact derivatives do not
            what, remedy = _REASONS.get(name, _NOISE)
            text = f"{name.replace('_', '-')} error of {what} is {error:.2g}, above {limit}"
            raise RefusedProductError("preflight", text, remedy, found)
    return found


def _check_semi_definite(space: ParameterSpace, products: Sequence[tuple[ParameterVector, ParameterVector]]) -> None:
    """Raise UntrustworthyError where forms that cannot be negative are so, by more than errors let pass would explain.

    An error e moves u.Gu by ||e|| / sqrt(n), and for random u it is ||Gu|| / sqrt(n) in the mean, or more.
    """
    total = sum(space.inner(u, gu) for u, gu in products)
    size = sum(space.norm(gu) for _, gu in products) / float(np.sqrt(space.dimension))
    if total < -_DEVIATIONS * LARGEST_ERROR * size:
        what, remedy = "u.Gu is negative, which that of no Gauss-Newton or Fisher matrix is", _NOISE[1]
        raise UntrustworthyError("preflight", what, remedy)


def _against_the_loss(
    risk: EmpiricalRisk,
    products: Sequence[tuple[ParameterVector, ParameterVector]],
    loss: LossValue,
    gradient: ParameterVector,
    *,
    semi_definite: bool,
) -> Mismatch:
    """The gradient, and products with unit vectors, against differences of the loss alone: the largest mismatch."""
    space, root = risk.space, float(np.sqrt(risk.space.dimension))
    found = []
    for u, hu in products:
        slope, curvature = space.inner(gradient, u), space.inner(u, hu)
        scales = max(abs(slope), space.norm(gradient) / root), max(abs(curvature), space.norm(hu) / root)
        if 0.0 not in scales:
            predicted = None if semi_definite else curvature
            found.append(
                mismatch_along(risk, u, loss.value, slope=slope, curvature=predicted, scales=scales, enough=_ENOUGH)
            )
    return Mismatch(_largest([f.slope for f in found]), _largest([f.curvature for f in found]))


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _known_answer_error(
    operator: LinearOperator[ParameterVector],
    risk: EmpiricalRisk,
    gradient: ParameterVector,
    typical: float,
    *,
    semi_definite: bool,
    seed: int,
) -> tuple[float | None, float]:
    """||Hd - answer|| over ||Hd|| for a unit d along a symmetry, and what it was divided by; None without one.

    A GGN or Fisher matrix gives zero there: `typical`, the size of a product with a random unit vector, sets the
    scale. So it does for the Hessian at a stationary point, where ||Hd|| is nothing but rounding.
    """
    symmetry = find_symmetry(risk, gradient, seed=seed)
    if symmetry is None:
        return None, typical
    space = operator.space
    d = symmetry.direction(risk)
    length = space.norm(d)
    if length == 0.0:
        return None, typical
    space.scale(1.0 / length, d)
    product, size = operator.matvec(d), typical
    del d
    if not semi_definite:
        size = max(space.norm(product), _STATIONARY * typical)
        space.axpy(-1.0 / length, symmetry.answer(risk, gradient), product)
    return space.norm(product) / size, size
