"""Exact products over processes: the layered sweep on each rank's rows, with layers that are gathered one by one."""

from collections.abc import Sequence

from hesscli.curvature.layers.push_layer import LayerPush
from hesscli.curvature.layers.stack import Stack
from hesscli.curvature.layers.sweep import Sweep
from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.score_curvature import ScoreCurvature
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.linalg.space import ParameterSpace, ParameterVector


class ShardedLayeredOperator:
    """The Hessian of a sharded risk, or with `curvature` a Gauss-Newton matrix; see `layers/layered.py`.

    A batch sends for k vectors less than (2 + 3k) times the weights' size: 2 + 2k by all-gather, k by reduce-scatter.
    From the second product on, that goes on while layers compute: 1 + k times a layer's size more is held.
    """

    def __init__(self, risk: ShardedRisk, stack: Stack, curvature: ScoreCurvature | None = None) -> None:
        self.risk, self._stack, self._curvature = risk, stack, curvature
        self._pushes = LayerPush(), LayerPush()

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self.risk.space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """The product: 4 gradients for the Hessian, 2 for Gauss-Newton."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """The products, sharing all that does not depend on v. Holds k results."""
        totals, swept = [self.space.zeros() for _ in vs], self.risk.swept
        residence = swept.residence
        like = len(self.risk.passes), self._curvature is None
        with twice_differentiable_attention(), residence.product(vs, totals, like=like), residence.outside() as outside:
            sweep = Sweep(swept, self._stack, self._curvature, self._pushes, vs, totals, outside=outside)
            for batch in self.risk.passes:
                sweep.add(batch)
        for total in totals:
            self.space.scale(1.0 / self.risk.num_terms, total)
        return totals
