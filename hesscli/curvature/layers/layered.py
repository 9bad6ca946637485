"""Exact products one layer at a time: below a plain gradient's memory where layers weigh more than a chunk of scores.

A sweep forward keeps values and tangents at the boundaries of the layers; a sweep back makes each layer again and
pulls cotangents and their tangents through it (Pearlmutter 1994, taken layer by layer):

    g_in = J^T g,   dg_in = J^T dg + (dJ)^T g,   and the same for the layer's weights gives (Hv)_l.

What lies between layers keeps its graph, which is small. The head runs in chunks of tokens where it takes tokens one
by one, so that (tokens, vocabulary) never exists. A Gauss-Newton product needs J^T dg alone.

Cost in gradients for k vectors: Hessian (4 + 8k)/3, Gauss-Newton (2 + 4k)/3; 4 and 2 for one. Where v is zero in a
layer and below, the layer costs less.
"""

from collections.abc import Sequence

from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.push_layer import LayerPush
from hesscli.curvature.layers.stack import Stack
from hesscli.curvature.layers.sweep import Sweep
from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import ScoreCurvature
from hesscli.linalg.space import ParameterSpace, ParameterVector


class LayeredOperator:
    """The Hessian of a risk, or with `curvature` a Gauss-Newton matrix, of a model with marked layers.

    Holds beside weights and vectors, for each vector: the tangents at the boundaries, and for all together one
    layer's activations with their first and second derivatives.
    """

    def __init__(
        self, risk: EmpiricalRisk, stack: Stack, curvature: ScoreCurvature | None = None, *, forward_mode: bool = True
    ) -> None:
        self.risk, self._stack, self._curvature = risk, stack, curvature
        # Through layers, and through the head. Forward mode costs less and is given up where an operation has none. A
        # head may weigh more than a layer: where vectors lie elsewhere, it has the part of one of them at a time.
        together = not (isinstance(risk, LayeredRisk) and risk.vectors_elsewhere)
        self._pushes = (
            LayerPush(forward_mode=forward_mode),
            LayerPush(forward_mode=forward_mode, together=together),
        )

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self.risk.space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """The product: 4 gradients for the Hessian, 2 for Gauss-Newton."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """The products, sharing all that does not depend on v. Holds k results."""
        totals = [self.space.zeros() for _ in vs]
        with twice_differentiable_attention(), self.risk.residence.outside() as outside:
            sweep = Sweep(self.risk, self._stack, self._curvature, self._pushes, vs, totals, outside=outside)
            for batch in self.risk.batches:
                if batch.num_terms:
                    sweep.add(batch)
        for total in totals:
            self.space.scale(1.0 / self.risk.num_terms, total)
        return totals
