"""What a density says beyond its moments and ends: condition, the tail's exponent, the effective dimension."""

from hesscli.linalg.estimators.functional import FEWEST_OUTLIERS
from hesscli.linalg.statistics import LEVEL
from hesscli.probes.density import Density
from hesscli.report import schema


def spectrum_figures(result: Density, radius: schema.Metric) -> dict[str, schema.Metric]:
    """Each with its interval, or without a value and with the reason."""
    out = {"condition_number": _condition(result, radius), "tail_exponent": _tail(result)}
    if (found := result.effective_dimension) is not None:
        out["effective_dimension"] = schema.Metric(
            value=found.value,
            stderr=found.stderr,
            ci=found.ci,
            level=LEVEL,
            errors=schema.Errors(numeric=(found.bracket[1] - found.bracket[0]) / 2, probe=found.stderr),
            n={"probes": found.count},
            reason="one draw has no error bar" if found.ci is None else None,
        )
    return out


def _condition(result: Density, radius: schema.Metric) -> schema.Metric:
    """A lower bound: the largest size for certain over the size that some eigenvalue is certainly below."""
    if radius.ci is None or radius.ci[0] <= 0:
        return schema.Metric(value=None, reason="the spectral radius is not known to be above zero")
    least = max(1.0, radius.ci[0] / (result.nearest_to_zero + result.smear))
    return schema.Metric(value=least, reason="at least this: an eigenvalue is certainly as near to zero")


def _tail(result: Density) -> schema.Metric:
    found = result.tail_exponent
    if found is None:
        return schema.Metric(
            value=None, reason=f"fewer than {FEWEST_OUTLIERS + 1} eigenvalues stand apart at the top, none missing"
        )
    # Not a Monte Carlo error over probes: the interval is over eigenvalues, were they drawn from a power law.
    return schema.Metric(value=found.value, stderr=found.stderr, ci=found.ci, n={"eigenvalues": found.count})
