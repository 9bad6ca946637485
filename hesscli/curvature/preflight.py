"""Self-tests of a product before anything is built on it; the figures go into the report and its intervals."""

from dataclasses import dataclass

import numpy as np

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries import find_symmetry
from hesscli.errors import UntrustworthyError
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector

# An exact float32 product shows 1e-7 to 1e-5, bfloat16 about 1e-2; a gross fault (dropout, a wrong transpose)
# shows 0.1 to 1.
_REFUSE = 0.05
_STATIONARY = 1e-2  # of a typical product: below this a known answer is too small to be read in its own length
_SEED_OFFSET = 1 << 40  # sample indices that no probe draws


@dataclass(frozen=True, slots=True)
class Preflight:
    """Relative errors of the product, each about ||e|| / ||H v|| for the error e that it sees."""

    symmetry: float
    """|u.Hv - v.Hu| over ||Hv|| / sqrt(n): what an error without structure would give."""
    repeat: float
    """||Hv - Hv|| / ||Hv|| for the same product made twice."""
    linearity: float
    """||H(u + v) - Hu - Hv|| / (||Hu|| + ||Hv||)."""
    known_answer: float | None
    """The product's distance from a known one along a symmetry of the network; None where none was found."""

    @property
    def noise(self) -> float:
        """The relative noise floor that every interval of the run is widened by."""
        return max(self.symmetry, self.repeat, self.linearity, self.known_answer or 0.0)


def check_product(
    operator: LinearOperator[ParameterVector], risk: EmpiricalRisk, *, semi_definite: bool, seed: int
) -> Preflight:
    """Run the self-tests: 5 products, a gradient, 6 vectors.

    `semi_definite`: the operator is a GGN or Fisher matrix, which is zero along the symmetries. Raises
    UntrustworthyError where a product is not finite, not the same twice, not symmetric, not linear or not the
    known one, or where the loss differs between two evaluations.
    """
    first, second = risk.loss().value, risk.loss().value
    if not np.isfinite(first):
        raise UntrustworthyError(
            "loss", f"the loss on the slice is {first}", "use --dtype float32, another slice, or check the weights"
        )
    if abs(first - second) > 1e-4 * abs(first):
        raise UntrustworthyError(
            "loss", f"two evaluations gave {first:.6g} and {second:.6g}", "the model is not deterministic"
        )
    space = operator.space
    u = space.random("gaussian", seed=seed, index=_SEED_OFFSET)
    v = space.random("gaussian", seed=seed, index=_SEED_OFFSET + 1)
    for x in (u, v):
        space.scale(1.0 / space.norm(x), x)
    hu, hv = operator.matvec(u), operator.matvec(v)
    norm_u, norm_v = space.norm(hu), space.norm(hv)
    if not np.isfinite(norm_u + norm_v):
        raise UntrustworthyError(
            "preflight", "a product holds NaN or Inf", "use --dtype float32 --attn eager, or another slice"
        )
    if norm_u == 0 and norm_v == 0:
        return Preflight(0.0, 0.0, 0.0, None)
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
    known = _known_answer_error(operator, risk, max(norm_u, norm_v), semi_definite=semi_definite, seed=seed)
    result = Preflight(skew / max(norm_u, norm_v), repeat, linearity, known)
    for name in ("repeat", "linearity", "symmetry", "known_answer"):
        error = getattr(result, name) or 0.0
        if error > _REFUSE:
            raise UntrustworthyError(
                "preflight",
                f"{name.replace('_', '-')} error of the product is {error:.2g}, above {_REFUSE}",
                "nothing measured with it can be trusted; use --dtype float32 and --attn eager",
            )
    return result


def _known_answer_error(
    operator: LinearOperator[ParameterVector], risk: EmpiricalRisk, typical: float, *, semi_definite: bool, seed: int
) -> float | None:
    """||Hd - answer|| over ||Hd|| for d along a symmetry; None without one.

    A GGN or Fisher matrix gives zero there: `typical`, the size of a product with a random unit vector, sets the
    scale. So it does for the Hessian at a stationary point, where ||Hd|| is nothing but rounding.
    """
    symmetry = find_symmetry(risk, seed=seed)
    if symmetry is None:
        return None
    space = operator.space
    d = symmetry.direction(risk)
    product, length = operator.matvec(d), space.norm(d)
    size = typical * length
    if not semi_definite:
        size = max(space.norm(product), _STATIONARY * size)
        space.axpy(-1.0, symmetry.answer(risk, risk.gradient()), product)
    return space.norm(product) / size
