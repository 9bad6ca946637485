"""Products in a wider dtype of a model whose weights are never all in one place: each layer is widened as it comes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.batches import split_rows
from hesscli.curvature.choice import Kind
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.score_curvature import LabelCurvature, ScoreCurvature, SoftmaxCurvature
from hesscli.curvature.sharded.layered import ShardedLayeredOperator
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.curvature.trust.wide import NO_LIMITS, float64_throughout
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterSpace, ParameterVector

_SHARE = 0.5  # of what is free may be taken by layers in a wider dtype
_OF_A_LAYER, _OF_THE_REST = 8, 9  # times at a product's worst moment, as `checkpoint/offload.py` has it
_MIDDLE: Mapping[Kind, ScoreCurvature | None] = {
    "hessian": None,
    "ggn": SoftmaxCurvature(),
    "fisher": SoftmaxCurvature(),
    "empirical-fisher": LabelCurvature(),
}


class WideLayersOperator:
    """A layered product for which weights are brought to a dtype when their layer runs; vectors are what they were."""

    def __init__(
        self,
        operator: LayeredOperator | ShardedLayeredOperator,
        widened: Callable[[torch.dtype], AbstractContextManager[None]],
        dtype: torch.dtype,
    ) -> None:
        self._operator, self._widened, self._dtype = operator, widened, dtype

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self._operator.space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """The product; holds what lies outside of layers in the wider dtype too, and one layer."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """The products, rounded once to the vectors' dtype."""
        throughout = float64_throughout() if self._dtype == torch.float64 else nullcontext()
        with throughout, self._widened(self._dtype):
            return self._operator.matvecs(vs)


def widened_layers(
    risk: LayeredRisk | ShardedRisk, kind: Kind, dtype: torch.dtype, *, limits: Mapping[torch.device, int] = NO_LIMITS
) -> WideLayersOperator | None:
    """The exact product with weights in `dtype`; a Fisher matrix's is the GGN.

    It takes half as many rows at once as the risk has in a batch: its activations are no larger than in half the
    width. None where layers in `dtype` would take more than half of the free memory, or more than `limits` say that
    the device may hold. Raises UnknownStructureError where the model cannot be taken layer by layer.
    """
    if not _fits(risk, dtype, limits):
        return None
    rows = max(len(b.targets) for b in risk.batches)
    fewer = split_rows(risk.batches, max(1, rows // 2))
    if isinstance(risk, ShardedRisk):
        gathered = ShardedLayeredOperator(risk.on(fewer), risk.swept.find_stack(), _MIDDLE[kind])
        return WideLayersOperator(gathered, risk.swept.residence.widened, dtype)
    return WideLayersOperator(LayeredOperator(risk.on(fewer), risk.stack, _MIDDLE[kind]), risk.widened, dtype)


def ggn_of_layers(risk: LayeredRisk | ShardedRisk) -> LinearOperator[ParameterVector]:
    """The GGN layer by layer, with weights as they are. Raises UnknownStructureError."""
    if isinstance(risk, ShardedRisk):
        return ShardedLayeredOperator(risk, risk.swept.find_stack(), SoftmaxCurvature())
    return LayeredOperator(risk, risk.stack, SoftmaxCurvature())


def _fits(risk: LayeredRisk | ShardedRisk, dtype: torch.dtype, limits: Mapping[torch.device, int]) -> bool:
    model = risk.swept.model if isinstance(risk, ShardedRisk) else risk.model
    layers = [sum(p.numel() for p in layer.parameters()) for layer in outermost_layers(model).values()]
    rest = sum(p.numel() for p in model.parameters()) - sum(layers)
    needed = dtype.itemsize * (_OF_A_LAYER * max(layers, default=0) + _OF_THE_REST * rest)
    free: int = risk.space.ranks.least(available_bytes(risk.input_device))
    return needed <= min(_SHARE * free, limits.get(risk.input_device, needed))
