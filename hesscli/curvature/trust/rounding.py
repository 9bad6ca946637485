"""What narrow weights do to a product: it is held against the same product in float32, on the same weights.

The symmetries alone do not see all of it. They hold for the function that narrow arithmetic computes, activations
rounded and all, and product and gradient have those in common: on a trained model of 0.5M parameters in bfloat16 they
show 1e-2, where products are off by 0.03 to 0.3 from the Hessian of the very weights that they were made with. With a
gradient in float32 they show the product's error along them, and other vectors are measured by themselves.
"""

from collections.abc import Callable, Mapping

import torch

from hesscli.curvature.batches import groups_of_rows
from hesscli.curvature.choice import Kind
from hesscli.curvature.differences.displaced import DisplacedGradient
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.curvature.trust.narrow_layers import narrow_and_wide
from hesscli.curvature.trust.preflight import LARGEST_ERROR
from hesscli.curvature.trust.wide import has_room, widened
from hesscli.errors import UntrustworthyError
from hesscli.events import Warned
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector

# Along a random vector 0.06 was seen where it was 0.22 along the top eigenvector, whose value was off by as much.
_POWERS = 5
_SAMPLE = (1 << 41) + 1  # the index of the random vector: no probe draws it
EXACT: Mapping[Kind, Callable[[EmpiricalRisk], LinearOperator[ParameterVector]]] = {
    "hessian": lambda risk: HessianOperator(risk, keep_graph=False),
    "ggn": GGNOperator,
    "fisher": GGNOperator,
    "empirical-fisher": EmpiricalFisherOperator,
}
"""The matrix of each kind by double backward or forward mode, without a graph that is kept."""


def is_narrow(risk: EmpiricalRisk) -> bool:
    """Whether a weight has fewer digits than float32."""
    return any(p.dtype != torch.promote_types(p.dtype, torch.float32) for p in risk.model.parameters())


def rounding_error(
    operator: LinearOperator[ParameterVector], risk: EmpiricalRisk, *, kind: Kind, seed: int
) -> float | None:
    """||Hv - Hv in float32|| / ||Hv||, the largest of a random v, H v, ..., H^4 v, which leans to the top eigenvector.

    For an exact product; None where a copy of the weights in float32 takes more than half of the free memory. Of
    weights that are fetched or shared layer by layer that is one layer, and what lies outside. The Fisher matrix is
    stood for by the GGN: its labels are drawn from what each precision predicts. Costs 5 products (Fisher: of the GGN),
    and 5 in float32, a row at a time, or half as many as a batch has.
    """
    if isinstance(risk, LayeredRisk | ShardedRisk):
        pair = narrow_and_wide(risk, kind)
        if pair is None:
            return None
        measured = pair[0] if kind == "fisher" else operator
        return max(krylov_errors(measured, pair[1], num_vectors=_POWERS, seed=seed), default=0.0)
    if not has_room(risk, bytes_per_weight=4):
        return None
    rows = groups_of_rows(risk.batches, at_least=sum(len(b.targets) for b in risk.batches))
    reference = EXACT[kind](widened(risk, rows, torch.float32))
    measured = GGNOperator(risk.on(rows)) if kind == "fisher" else operator
    return max(krylov_errors(measured, reference, num_vectors=_POWERS, seed=seed), default=0.0)


def krylov_errors(
    measured: LinearOperator[ParameterVector],
    reference: LinearOperator[ParameterVector],
    *,
    num_vectors: int,
    seed: int,
) -> list[float]:
    """||Hv - truth|| / ||Hv|| for a random v, H v, H^2 v, ..., as many as are not zero: a product of each for each.

    Products of the reference may be in a wider dtype.
    """
    space = measured.space
    v, errors = space.random("gaussian", seed=seed, index=_SAMPLE), []
    for _ in range(num_vectors):
        space.scale(1.0 / space.norm(v), v)
        product = measured.matvec(v)
        size = space.norm(product)
        if size == 0.0:
            break
        difference = reference.matvec(v)
        space.axpy(-1.0, product, difference)
        errors.append(space.norm(difference) / size)
        v = product
    return errors


def gradient_in_float32(risk: EmpiricalRisk) -> ParameterVector | None:
    """The gradient at narrow weights, computed in float32; None where a copy of the weights takes too much memory.

    A known answer from it holds the roundings that product and gradient of a narrow pass have in common. Costs a
    gradient in float32, two where the model chooses, as experts for tokens.
    """
    return DisplacedGradient(risk).origin() if has_room(risk, bytes_per_weight=8) else None


def check_rounding(error: float | None) -> list[Warned]:
    """What a reader must know of figures in narrow arithmetic, whose error `rounding_error` gave.

    Raises UntrustworthyError where it is above what the preflight lets pass.
    """
    remedy = "use --dtype float32, or --product finite-difference, which computes in it"
    if error is None:
        text = "weights are narrower than float32, and their effect on products could not be measured: tens of per cent"
        return [Warned("rounding", f"{text} were seen, and intervals do not allow for it; {remedy}")]
    if not error <= LARGEST_ERROR:
        what = f"rounding error of the product is {error:.2g} against the same in float32, above {LARGEST_ERROR}"
        raise UntrustworthyError("preflight", what, remedy)
    text = f"products with these narrow weights are off by {error:.2g} from the same in float32"
    return [Warned("rounding", f"{text}, and intervals allow for it; {remedy}")]
