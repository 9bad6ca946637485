"""Products in float32 of a model whose narrow weights are never all in one place: each layer is widened as it comes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.batches import split_rows
from hesscli.curvature.choice import Kind
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.score_curvature import LabelCurvature, ScoreCurvature, SoftmaxCurvature
from hesscli.curvature.sharded.layered import ShardedLayeredOperator
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterSpace, ParameterVector

_SHARE = 0.5  # of what is free may be taken by layers in float32
_OF_A_LAYER, _OF_THE_REST = (
    8,
    9,
)  # times at a product's worst moment, as `checkpoint/offload.py` has it
_MIDDLE: Mapping[Kind, ScoreCurvature | None] = {
    "hessian": None,
    "ggn": SoftmaxCurvature(),
    "fisher": SoftmaxCurvature(),
    "empirical-fisher": LabelCurvature(),
}


class WideLayersOperator:
    """A layered product for which weights are brought to float32 when their layer runs; vectors are what they were."""

    def __init__(
        self, operator: LayeredOperator | ShardedLayeredOperator, widened: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._operator, self._widened = operator, widened

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self._operator.space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """The product; holds what lies outside of layers in float32 too, and one layer."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """The products."""
        with self._widened():
            return self._operator.matvecs(vs)


def narrow_and_wide(
    risk: LayeredRisk | ShardedRisk, kind: Kind
) -> tuple[LinearOperator[ParameterVector], LinearOperator[ParameterVector]] | None:
    """The exact product with weights as they are, and with the same in float32; a Fisher matrix's is the GGN.

    The second takes half as many rows at once: its activations are no larger. None where layers in float32 would take
    more than half of the free memory. Raises UnknownStructureError where the model cannot be taken layer by layer.
    """
    if not _fits(risk):
        return None
    middle, rows = _MIDDLE[kind], max(len(b.targets) for b in risk.batches)
    fewer = split_rows(risk.batches, max(1, rows // 2))
    if isinstance(risk, ShardedRisk):
        gathered, widened = risk.swept.find_stack(), risk.swept.residence.widened
        wide = WideLayersOperator(ShardedLayeredOperator(risk.on(fewer), gathered, middle), widened)
        return ShardedLayeredOperator(risk, gathered, middle), wide
    stack = risk.stack
    wide = WideLayersOperator(LayeredOperator(risk.on(fewer), stack, middle), risk.widened)
    return LayeredOperator(risk, stack, middle), wide


def _fits(risk: LayeredRisk | ShardedRisk) -> bool:
    model = risk.swept.model if isinstance(risk, ShardedRisk) else risk.model
    layers = [sum(p.numel() for p in layer.parameters()) for layer in outermost_layers(model).values()]
    rest = sum(p.numel() for p in model.parameters()) - sum(layers)
    needed = 4 * (_OF_A_LAYER * max(layers, default=0) + _OF_THE_REST * rest)
    free: int = risk.space.ranks.least(available_bytes(risk.input_device))
    return needed <= _SHARE * free
