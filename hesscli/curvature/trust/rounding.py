"""What narrow weights do to a product: it is held against the same product in float32, on the same weights.

The symmetries alone do not see all of it. They hold for the function that narrow arithmetic computes, activations
rounded and all, and product and gradient have those in common: on a trained model of 0.5M parameters in bfloat16 they
show 1e-2, where products are off by 0.03 to 0.3 from the Hessian of the very weights that they were made with. With a
gradient in float32 they show the product's error along them, and other vectors are measured by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from hesscli.curvature.batches import groups_of_rows
from hesscli.curvature.choice import Kind
from hesscli.curvature.differences.displaced import DisplacedGradient
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.curvature.trust.preflight import LARGEST_ERROR, Preflight, RefusedProductError
from hesscli.curvature.trust.product_errors import Operator, Rounding, errors_along, sampled_errors
from hesscli.curvature.trust.wide import NO_LIMITS, has_room, widened
from hesscli.curvature.trust.wide_layers import ggn_of_layers, widened_layers
from hesscli.events import Warned
from hesscli.linalg.space import ParameterVector

# Along a random vector 0.06 was seen where it was 0.22 along the top eigenvector, whose value was off by as much.
_RANDOM, _POWERS = 2, 4
EXACT: Mapping[Kind, Callable[[EmpiricalRisk], Operator]] = {
    "hessian": lambda risk: HessianOperator(risk, keep_graph=False),
    "ggn": GGNOperator,
    "fisher": GGNOperator,
    "empirical-fisher": EmpiricalFisherOperator,
}
"""The matrix of each kind by double backward or forward mode, without a graph that is kept; a Fisher matrix's GGN."""


def is_narrow(risk: EmpiricalRisk) -> bool:
    """Whether a weight has fewer digits than float32."""
    return any(p.dtype != torch.promote_types(p.dtype, torch.float32) for p in risk.model.parameters())


def float32_pair(
    operator: Operator, risk: EmpiricalRisk, *, kind: Kind, limits: Mapping[torch.device, int] = NO_LIMITS
) -> tuple[Operator, Operator] | None:
    """A product of narrow weights and the same in float32; of a Fisher matrix both are the GGN's.

    Its labels are drawn from what each precision predicts, so the GGN stands for it. None where a copy of the weights
    in float32 takes more than half of the free memory, or more than `limits` say that a device may hold. Of weights
    that are fetched or shared layer by layer that is one layer, and what lies outside. In float32 a row at a time runs,
    or half as many as a batch has.
    """
    if isinstance(risk, LayeredRisk | ShardedRisk):
        wide = widened_layers(risk, kind, torch.float32, limits=limits)
        return None if wide is None else (ggn_of_layers(risk) if kind == "fisher" else operator, wide)
    if not has_room(risk, bytes_per_weight=4, limits=limits):
        return None
    rows = groups_of_rows(risk.batches, at_least=sum(len(b.targets) for b in risk.batches))
    reference = EXACT[kind](widened(risk, rows, torch.float32))
    return GGNOperator(risk.on(rows)) if kind == "fisher" else operator, reference


@dataclass(frozen=True, slots=True)
class HeldAgainstWider:
    """A run's product that is held against the same in a wider dtype, and what that is made from."""

    operator: Operator
    risk: EmpiricalRisk
    kind: Kind
    seed: int
    limits: Mapping[torch.device, int] = field(default_factory=dict)
    """Bytes that the run may hold on a device, where it was told."""


@dataclass(frozen=True, slots=True)
class Float32Errors(HeldAgainstWider):
    """The errors of an exact product with narrow weights along any vectors, on all rows."""

    def along(self, vectors: Sequence[ParameterVector]) -> list[float] | None:
        """||Hv - Hv in float32|| / ||Hv|| for each vector, a product of either; None where it cannot be measured."""
        pair = self._pair()
        return None if pair is None else errors_along(*pair, vectors)

    def sampled(self) -> Rounding | None:
        """Along random vectors and towards the ends of the spectrum: 6 products, and 6 in float32."""
        pair = self._pair()
        if pair is None:
            return None
        return sampled_errors(*pair, num_random=_RANDOM, num_powers=_POWERS, seed=self.seed)

    def _pair(self) -> tuple[Operator, Operator] | None:
        return float32_pair(self.operator, self.risk, kind=self.kind, limits=self.limits)


def gradient_in_float32(
    risk: EmpiricalRisk, *, limits: Mapping[torch.device, int] = NO_LIMITS
) -> ParameterVector | None:
    """The gradient at narrow weights, computed in float32; None where a copy of the weights takes too much memory.

    A known answer from it holds the roundings that product and gradient of a narrow pass have in common. Costs a
    gradient in float32, two where the model chooses, as experts for tokens.
    """
    return DisplacedGradient(risk).origin() if has_room(risk, bytes_per_weight=8, limits=limits) else None


def check_rounding(found: Preflight, rounding: Rounding | None, *, differences: bool) -> tuple[Preflight, Warned]:
    """The preflight with what narrow arithmetic does to products, and what a reader must know of it.

    `differences`: whether finite differences can be taken, of the Hessian and of weights that lie whole on their
    devices. Raises RefusedProductError where an error is above what the preflight lets pass.
    """
    remedy = "use --dtype float32"
    if differences:
        remedy += ", or --product finite-difference, which computes in it"
    if rounding is None:
        text = "weights are narrower than float32, and their effect on products could not be measured: tens of per cent"
        return found, Warned("rounding", f"{text} were seen, and intervals do not allow for it; {remedy}")
    found = replace(found, rounding=rounding.random, rounding_at_ends=rounding.ends)
    error = rounding.largest
    if not error <= LARGEST_ERROR:
        what = f"rounding error of the product is {error:.2g} against the same in float32, above {LARGEST_ERROR}"
        raise RefusedProductError("preflight", what, remedy, found)
    text = f"products with these narrow weights are off by up to {error:.2g} from the same in float32"
    return found, Warned("rounding", f"{text}, and intervals allow for it; {remedy}")
