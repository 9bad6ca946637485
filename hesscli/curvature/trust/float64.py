"""What float32 does to a product and to a gradient: asked in float64, on a few short rows of the same data.

A known answer does not see all of it. Product and gradient of one pass share its roundings, so the distance between
them is 0.3 to 2 times the product's error along the symmetry; and along a direction that changes nothing there is less
to round: along random vectors the error was 0.4 to 8 times that distance, over a hundred tiny architectures. The
roundings go with the model and hardly with the number of rows: on a few they were 0.3 to 2.5 times those on all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hesscli.curvature.batches import split_rows
from hesscli.curvature.choice import Kind
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.trust.preflight import Preflight
from hesscli.curvature.trust.rounding import EXACT, krylov_errors
from hesscli.curvature.trust.wide import float64_throughout, has_room, widened
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterSpace, ParameterVector

_ROWS = 4
_POWERS = 5
_BYTES = 32  # a weight: in float64 the copy, the vector, its gradient with a graph, and the product
# What a model's own code may raise where its numbers are wider than it was written for.
_UNSUITED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def with_float64(found: Preflight, risk: EmpiricalRisk, *, kind: Kind, seed: int) -> Preflight:
    """The preflight of an exact product in float32, with what float64 shows.

    `rounding` becomes ||Hv - Hv in float64|| / ||Hv||, root mean square over a random v, H v, ..., H^4 v; of the
    Hessian `known_answer` gets the gradient's relative error added in quadrature, which it shares with the product.
    The Fisher matrix is stood for by the GGN.

    As it was found where not all weights are float32, where the model does not lie whole on its devices with room for
    four copies in float64, and where its code does not run in float64. Costs a gradient and five products on at most
    four rows of 32 positions, and the same in float64: less than a gradient of all but the smallest slices.
    """
    if any(p.dtype != torch.float32 for p in risk.model.parameters()) or not has_room(risk, bytes_per_weight=_BYTES):
        return found
    few = _short_rows(risk)
    try:
        wide = widened(few, few.batches, torch.float64)
        errors = krylov_errors(EXACT[kind](few), _InFloat64(EXACT[kind](wide)), num_vectors=_POWERS, seed=seed)
        shared = _gradient_error(few, wide)
    except _UNSUITED:
        return found
    rounding = float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
    if not np.isfinite([rounding, shared]).all():
        return found
    known = found.known_answer
    if known is not None and kind == "hessian":
        known = float(np.hypot(known, shared))
    return replace(found, rounding=rounding, known_answer=known)


@dataclass(frozen=True, slots=True)
class _InFloat64:
    """An operator in float64 that takes vectors of the space in float32."""

    operator: LinearOperator[ParameterVector]

    @property
    def space(self) -> ParameterSpace:
        return self.operator.space  # type: ignore[return-value]

    def matvec(self, v: ParameterVector) -> ParameterVector:
        with float64_throughout():
            return self.operator.matvec([part.double() for part in v])

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        return [self.matvec(v) for v in vs]


def _gradient_error(risk: EmpiricalRisk, wide: EmpiricalRisk) -> float:
    """||g - g in float64|| / ||g||; 0 where it is zero."""
    gradient, space = risk.gradient(), risk.space
    with float64_throughout():
        difference = wide.gradient()
    space.axpy(-1.0, gradient, difference)
    size = space.norm(gradient)
    return space.norm(difference) / size if size > 0.0 else 0.0


def _short_rows(risk: EmpiricalRisk) -> EmpiricalRisk:
    """The risk of a few rows spread over the data, each cut to some positions about its first term."""
    rows = split_rows(risk.batches, 1)
    chosen = sorted({round(i) for i in np.linspace(0, len(rows) - 1, _ROWS)})
    return risk.on([risk.on([rows[i]]).first_row(most=LOOKED_AT).batches[0] for i in chosen])
