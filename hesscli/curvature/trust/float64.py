"""What float32 does to a product and to a gradient: asked in float64, on a few short rows of the same data.

A known answer does not see all of it. Product and gradient of one pass share its roundings, so the distance between
them is 0.3 to 2 times the product's error along the symmetry; and along a direction that changes nothing there is less
to round: along random vectors the error was 0.4 to 8 times that distance, over a hundred tiny architectures. The
roundings go with the model and the vector, and hardly with the number of rows: on a few they were 0.3 to 2.5 times
those on all.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from hesscli.curvature.batches import on_risk, split_rows
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.stack import UnknownStructureError
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.curvature.trust.derivatives import drawn_labels, mismatches
from hesscli.curvature.trust.line import Mismatch
from hesscli.curvature.trust.precision import narrow_inside
from hesscli.curvature.trust.preflight import Preflight, accepted
from hesscli.curvature.trust.product_errors import Operator, Rounding, errors_along, sampled_errors
from hesscli.curvature.trust.rounding import EXACT, HeldAgainstWider
from hesscli.curvature.trust.wide import float64_throughout, has_room, widened
from hesscli.curvature.trust.wide_layers import widened_layers
from hesscli.data.slice import Batch
from hesscli.linalg.space import ParameterSpace, ParameterVector

T = TypeVar("T")

_ROWS = 4
_RANDOM, _POWERS = 3, 3
_BYTES = 32  # a weight: in float64 the copy, the vector, its gradient with a graph, and the product
# What a model's own code may raise where its numbers are wider than it was written for.
_UNSUITED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, UnknownStructureError)


@dataclass(frozen=True, slots=True)
class Float64Errors(HeldAgainstWider):
    """The errors of an exact product along any vectors, on at most four rows of 32 positions.

    Weights are float32, or float64 where the model's code brings them to float32 on their way.

    The product is the run's own. It is held against double backward in float64; of weights that are fetched
    layer by layer against a layered product whose weights are widened as they come. A Fisher matrix's labels are those
    that float32 draws. A copy in float64 is made for each question, and let go of after.
    """

    def along(self, vectors: Sequence[ParameterVector]) -> list[float] | None:
        """||Hv - Hv in float64|| / ||Hv|| for each vector: a product of few rows in either precision.

        None where weights are others, where float64 is what it says, where there is no room for what is widened (four
        copies of weights that lie whole on their devices, a layer of those that are fetched), where the model's code
        does not run in float64, and over several processes.
        """
        return self._asked(lambda few, wide: errors_along(few.operator, wide.operator, vectors))

    def preflight(self, found: Preflight) -> Preflight:
        """What the preflight found, with what float64 shows.

        `rounding` and `rounding_at_ends` are root mean squares over three random vectors, and over three that lean to
        the ends of the spectrum. Of weights that lie whole on their devices, `known_answer` of the Hessian gets the
        gradient's relative error added in quadrature, which it shares with the product, and `slope` and `curvature`
        become what they are in float64, where they are decided there.

        As it was where `along` gives None. Costs seven products and six gradients of few rows in either precision, less
        than a gradient of all but the smallest slices. Raises RefusedProductError where an error is too large.
        """
        measured = self._asked(self._measured)
        if measured is None or not np.isfinite([measured.rounding.largest, measured.shared]).all():
            return found
        known = found.known_answer
        if known is not None and self.kind == "hessian":
            known = float(np.hypot(known, measured.shared))
        rounding, mismatch = measured.rounding, measured.mismatch
        better = replace(found, rounding=rounding.random, rounding_at_ends=rounding.ends, known_answer=known)
        decided = {name: value for name, value in asdict(mismatch).items() if value is not None}
        return accepted(replace(better, **decided), self.risk, in_float64=decided)

    def _measured(self, few: "_Side", wide: "_Side") -> "_Measured":
        rounding = sampled_errors(few.operator, wide.operator, num_random=_RANDOM, num_powers=_POWERS, seed=self.seed)
        if wide.risk is None:
            return _Measured(rounding, 0.0, Mismatch(None, None))
        gradient = few.risk.gradient() if few.risk is not None else []
        with float64_throughout():
            difference = wide.risk.gradient()
        mismatch = mismatches(
            wide.risk, wide.risk.space.copy(difference), wide.operator.matvec, kind=self.kind, seed=self.seed
        )
        space = self.risk.space
        space.axpy(-1.0, gradient, difference)
        size = space.norm(gradient)
        return _Measured(rounding, space.norm(difference) / size if size > 0.0 else 0.0, mismatch)

    def _asked(self, question: Callable[["_Side", "_Side"], T]) -> T | None:
        if not self._has_what_float64_lacks():
            return None
        try:
            sides = self._sides()
            return None if sides is None else question(*sides)
        except _UNSUITED:  # memory that runs out among them
            return None

    def _has_what_float64_lacks(self) -> bool:
        """Whether weights are float32, or float64 in a model whose code computes in float32 inside."""
        dtypes = {p.dtype for p in self.risk.model.parameters()}
        if dtypes == {torch.float64}:
            return narrow_inside(self.risk) is not None
        return dtypes == {torch.float32}

    def _sides(self) -> "tuple[_Side, _Side] | None":
        if isinstance(self.risk, ShardedRisk):
            return None  # what is sent between processes has a dtype of its own
        fetched = isinstance(self.risk, LayeredRisk)
        if not fetched and not has_room(self.risk, bytes_per_weight=_BYTES, limits=self.limits):
            return None
        few = _short_rows(self.risk)
        measured = _Side(on_risk(self.operator, few), few)
        fixed, kind = few, self.kind
        if kind == "fisher":
            fixed, kind = few.on(drawn_labels(few, seed=self.seed)), "empirical-fisher"
        if isinstance(fixed, LayeredRisk):
            layers = widened_layers(fixed, kind, torch.float64, limits=self.limits)
            return None if layers is None else (measured, _Side(layers, None))
        wide = widened(fixed, fixed.batches, torch.float64)
        reference = HessianOperator(wide, keep_graph=True) if kind == "hessian" else EXACT[kind](wide)
        return measured, _Side(_InFloat64(reference), wide)


@dataclass(frozen=True, slots=True)
class _Side:
    """An operator on the few rows and their risk; None where there is no such risk in this dtype."""

    operator: Operator
    risk: EmpiricalRisk | None


@dataclass(frozen=True, slots=True)
class _Measured:
    rounding: Rounding
    shared: float
    """||g - g in float64|| / ||g||; 0 where it was not asked."""
    mismatch: Mismatch


@dataclass(frozen=True, slots=True)
class _InFloat64:
    """An operator in float64 that takes vectors of the space in float32."""

    operator: Operator

    @property
    def space(self) -> ParameterSpace:
        return self.operator.space  # type: ignore[return-value]

    def matvec(self, v: ParameterVector) -> ParameterVector:
        with float64_throughout():
            return self.operator.matvec([part.double() for part in v])

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        return [self.matvec(v) for v in vs]


def _short_rows(risk: EmpiricalRisk) -> EmpiricalRisk:
    """The risk of a few rows spread over the data, each cut to some positions about its first term.

    Those that have the same shape are one batch: of small ones most of the time goes into calls.
    """
    rows = split_rows(risk.batches, 1)
    chosen = sorted({round(i) for i in np.linspace(0, len(rows) - 1, _ROWS)})
    alike: dict[str, list[Batch]] = {}
    for i in chosen:
        row = risk.on([rows[i]]).first_row(most=LOOKED_AT).batches[0]
        shapes = {name: value.shape for name, value in row.inputs.items()}
        alike.setdefault(str((sorted(shapes.items()), row.targets.shape)), []).append(row)
    return risk.on([_together(same) for same in alike.values()])


def _together(rows: Sequence[Batch]) -> Batch:
    inputs = {name: torch.cat([row.inputs[name] for row in rows]) for name in rows[0].inputs}
    return Batch(inputs, torch.cat([row.targets for row in rows]))
