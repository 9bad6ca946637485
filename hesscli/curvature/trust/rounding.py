"""What narrow weights do to a product: it is held against the same product in float32, on the same weights.

The symmetries do not see all of it. They hold for the function that narrow arithmetic computes, activations rounded and
all, and product and gradient have those in common: on a trained model of 0.5M parameters in bfloat16 they show 1e-2,
where products are off by 0.03 to 0.3 from the Hessian of the very weights that they were made with.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch

from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.batches import groups_of_rows
from hesscli.curvature.choice import Kind
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator
from hesscli.curvature.layers.residence import Resident
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.trust.preflight import LARGEST_ERROR
from hesscli.data.slice import Batch
from hesscli.errors import UntrustworthyError
from hesscli.events import Warned
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector

_SHARE = 0.5  # of what is free may be taken by the copy in float32
# Along a random vector 0.06 was seen where it was 0.22 along the top eigenvector, whose value was off by as much.
_POWERS = 5
_SAMPLE = (1 << 41) + 1  # the index of the random vector: no probe draws it
_EXACT: Mapping[Kind, Callable[[EmpiricalRisk], LinearOperator[ParameterVector]]] = {
    "hessian": lambda risk: HessianOperator(risk, keep_graph=False),
    "ggn": GGNOperator,
    "fisher": GGNOperator,
    "empirical-fisher": EmpiricalFisherOperator,
}


def is_narrow(risk: EmpiricalRisk) -> bool:
    """Whether a weight has fewer digits than float32."""
    return any(p.dtype != torch.promote_types(p.dtype, torch.float32) for p in risk.model.parameters())


def rounding_error(
    operator: LinearOperator[ParameterVector], risk: EmpiricalRisk, *, kind: Kind, seed: int
) -> float | None:
    """||Hv - Hv in float32|| / ||Hv||, the largest of a random v, H v, ..., H^4 v, which leans to the top eigenvector.

    For an exact product of a model that lies on its devices; None for others, and where a copy of the weights in
    float32 takes more than half of the free memory. The Fisher matrix is stood for by the GGN: its labels are drawn
    from what each precision predicts. Costs 5 products (Fisher: of the GGN), and 5 in float32, a row at a time.
    """
    if not isinstance(risk.residence, Resident) or not _fits_in_float32(risk):
        return None
    rows = groups_of_rows(risk.batches, at_least=sum(len(b.targets) for b in risk.batches))
    reference = _EXACT[kind](_in_float32(risk, rows))
    measured = GGNOperator(risk.on(rows)) if kind == "fisher" else operator
    space = risk.space
    v, errors = space.random("gaussian", seed=seed, index=_SAMPLE), []
    for _ in range(_POWERS):
        space.scale(1.0 / space.norm(v), v)
        product = measured.matvec(v)
        size = space.norm(product)
        if size == 0.0:
            break
        difference = reference.matvec(v)
        space.axpy(-1.0, product, difference)
        errors.append(space.norm(difference) / size)
        v = product
    return max(errors, default=0.0)


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


def _fits_in_float32(risk: EmpiricalRisk) -> bool:
    if risk.space.ranks.device is not None:  # shared by processes: none of them has the whole model
        return False
    needed: dict[torch.device, int] = {}
    for p in risk.model.parameters():
        needed[p.device] = needed.get(p.device, 0) + 4 * p.numel()
    return all(count <= _SHARE * available_bytes(device) for device, count in needed.items())


def _in_float32(risk: EmpiricalRisk, batches: Sequence[Batch]) -> EmpiricalRisk:
    """The same risk on a copy of the model, which is what its weights are in float32."""
    model = copy.deepcopy(risk.model).float()
    parameters = dict(model.named_parameters())
    return EmpiricalRisk(
        model,
        batches,
        names=risk.space.names,
        parameters=[parameters[name] for name in risk.space.names],
        input_device=risk.input_device,
    )
