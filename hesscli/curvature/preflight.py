"""Self-tests of a product before anything is built on it; the figures go into the report and its intervals."""

from dataclasses import dataclass

import numpy as np

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.errors import UntrustworthyError
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector

# An exact float32 product shows 1e-7 to 1e-5, bfloat16 about 1e-2; a gross fault (dropout, a wrong transpose)
# shows 0.1 to 1.
_REFUSE = 0.05
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

    @property
    def noise(self) -> float:
        """The relative noise floor that every interval of the run is widened by."""
        return max(self.symmetry, self.repeat, self.linearity)


def check_product(operator: LinearOperator[ParameterVector], risk: EmpiricalRisk, *, seed: int) -> Preflight:
    """Run the self-tests: 4 products, 6 vectors.

    Raises UntrustworthyError where a product is not finite, not the same twice, not symmetric or not linear,
    or where the loss differs between two evaluations.
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
        return Preflight(0.0, 0.0, 0.0)
    skew = abs(space.inner(u, hv) - space.inner(v, hu)) * float(np.sqrt(space.dimension))
    again = operator.matvec(v)
    space.axpy(-1.0, hv, again)
    repeat = space.norm(again) / norm_v
    del again
    space.axpy(1.0, u, v)
    together = operator.matvec(v)
    space.axpy(-1.0, hu, together)
    space.axpy(-1.0, hv, together)
    result = Preflight(skew / max(norm_u, norm_v), repeat, space.norm(together) / (norm_u + norm_v))
    for name in ("repeat", "linearity", "symmetry"):
        error = getattr(result, name)
        if error > _REFUSE:
            raise UntrustworthyError(
                "preflight",
                f"{name} error of the product is {error:.2g}, above {_REFUSE}",
                "nothing measured with it can be trusted; use --dtype float32 and --attn eager",
            )
    return result
