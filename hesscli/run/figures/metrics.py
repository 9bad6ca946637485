"""From a probe's result to the report's metrics: each value with its errors apart and an interval."""

from collections.abc import Sequence

import numpy as np

from hesscli.curvature.selection import Block
from hesscli.linalg.space import ParameterSpace, ParameterVector
from hesscli.linalg.statistics import LEVEL, Estimate
from hesscli.probes.density import Density
from hesscli.probes.topk import TopK
from hesscli.probes.trace import Trace
from hesscli.report import schema
from hesscli.run.figures.spectrum_figures import spectrum_figures

Metrics = dict[str, schema.Metric]


def sampled(estimate: Estimate, *, precision: float, count: str = "probes") -> schema.Metric:
    """A Monte Carlo estimate; its t interval is widened by the product's noise."""
    n = {count: estimate.count}
    if not np.isfinite(estimate.value):
        return schema.Metric(value=None, n=n, reason="the product is zero there")
    errors = schema.Errors(probe=estimate.stderr, precision=precision)
    if estimate.ci is None:
        return schema.Metric(value=estimate.value, errors=errors, n=n, reason="one draw has no error bar")
    ci = (estimate.ci[0] - precision, estimate.ci[1] + precision)
    return schema.Metric(value=estimate.value, stderr=estimate.stderr, ci=ci, level=LEVEL, errors=errors, n=n)


def bounded(value: float, low: float, high: float, *, precision: float, n: int | None = None) -> schema.Metric:
    """A value between two bounds that hold whatever the probes were."""
    numeric = max(high - value, value - low, 0.0)
    return schema.Metric(
        value=value,
        stderr=None,
        ci=(low - precision, high + precision),
        level=LEVEL,
        errors=schema.Errors(numeric=numeric, precision=precision),
        n={} if n is None else {"probes": n},
    )


def end(value: float, inward: float, outward: float | None, *, sign: int, precision: float) -> schema.Metric:
    """An end of the spectrum (sign 1 the upper): an eigenvalue lies within `inward`, none beyond `outward`."""
    if outward is None:
        return schema.Metric(value=value, reason="too few steps to say how far the spectrum goes beyond")
    beyond = max(inward, outward)
    low, high = (value - inward, value + beyond) if sign > 0 else (value - beyond, value + inward)
    return bounded(value, low, high, precision=precision)


def extremes(
    high: tuple[float, float] | None, low: tuple[float, float] | None, *, reach: float | None, precision: float
) -> Metrics:
    """lambda_max, lambda_min and spectral_radius from (value, residual) of the ends that were looked at."""
    out: Metrics = {}
    if high:
        out["lambda_max"] = end(*high, reach, sign=1, precision=precision)
    if low:
        out["lambda_min"] = end(*low, reach, sign=-1, precision=precision)
    if high and low:
        radius = max(abs(high[0]), abs(low[0]))
        # The end that is smaller by a little may be the larger one within its bar.
        least = max(abs(value) - residual for value, residual in (high, low))
        most = None if reach is None else max(abs(v) + max(r, reach) for v, r in (high, low)) - radius
        out["spectral_radius"] = end(radius, radius - least, most, sign=1, precision=precision)
    return out


# A product's error is estimated on a few rows: alone, one bar of 5.29e-5 on `demo` missed by 5.31e-5.
_ESTIMATED = 2.0


def topk_precision(result: TopK, *, noise: float, place: int, product_errors: Sequence[float] | None = None) -> float:
    """What the product's error does to the eigenvalue at this place, or the noise meter's semicircle if larger.

    Twice the length of the error along its own eigenvector, where that was estimated; else relative noise by the
    radius. What the certificate's products lack of symmetry is relative to the radius.
    """
    radius = max(abs(p.value) for p in result.pairs)
    size = abs(result.pairs[place].value)
    own = noise * radius if product_errors is None else _ESTIMATED * product_errors[place] * size
    return max(own, result.asymmetry * radius, 2 * result.noise)


def topk_metrics(result: TopK, *, noise: float, product_errors: Sequence[float] | None = None) -> Metrics:
    """What certified pairs say; an end that was not looked at is absent.

    `product_errors` of the pairs stand in for `noise` where they were measured.
    """
    pairs = [(p.value, p.bar) for p in result.pairs]
    high = pairs[0] if result.num_high else None
    low = pairs[-1] if result.num_high < len(pairs) else None
    at_high, at_low = (
        topk_precision(result, noise=noise, place=place, product_errors=product_errors) for place in (0, -1)
    )
    out = extremes(high, low, reach=result.reach, precision=max(at_high, at_low))
    if high:
        out |= extremes(high, None, reach=result.reach, precision=at_high)
    if low:
        out |= extremes(None, low, reach=result.reach, precision=at_low)
    if high:
        out["max_stable_learning_rate"] = (
            _learning_rate(out["lambda_max"])
            if result.pairs[0].converged
            else schema.Metric(value=None, reason="lambda_max has not converged: a larger one may be missing")
        )
    return out


def _learning_rate(lambda_max: schema.Metric) -> schema.Metric:
    assert lambda_max.value is not None
    if lambda_max.ci is None:
        return schema.Metric(value=None, reason=lambda_max.reason)
    low, high = lambda_max.ci
    if low <= 0:
        told = "not above zero" if high <= 0 else "not told apart from zero"
        return schema.Metric(value=None, reason=f"lambda_max is {told}: it sets no limit")
    return bounded(2 / lambda_max.value, 2 / high, 2 / low, precision=0.0)


def moments(trace: Estimate, squared_frobenius: Estimate, *, dimension: int, noise: float) -> Metrics:
    """Trace, mean eigenvalue and Frobenius norm; noise e in a product z.e has size noise ||H||_F."""
    norm = float(np.sqrt(max(squared_frobenius.value, 0.0)))
    metric = sampled(trace, precision=trace_precision(trace, squared_frobenius, noise=noise))
    return {
        "trace": metric,
        "mean_eigenvalue": scaled(metric, 1.0 / dimension),
        "frobenius_norm": root(sampled(squared_frobenius, precision=2 * noise * norm**2)),
    }


def trace_precision(trace: Estimate, squared_frobenius: Estimate, *, noise: float) -> float:
    """What a product's relative error does to the trace.

    Errors that differ from product to product enter z.Hz as noise ||H||_F. One that all products share, such as that of
    weights rounded to bfloat16, may enlarge every eigenvalue alike: then it is that share of the trace.
    """
    return noise * max(float(np.sqrt(max(squared_frobenius.value, 0.0))), abs(trace.value))


def density_metrics(result: Density, *, noise: float) -> Metrics:
    """The moments, the ends, the share below zero and the effective rank."""
    high = max(((float(q.values[-1]), float(q.residual_norms[-1])) for q in result.quadratures), key=lambda p: p[0])
    low = min(((float(q.values[0]), float(q.residual_norms[0])) for q in result.quadratures), key=lambda p: p[0])
    out = extremes(high, low, reach=result.reach, precision=result.precision)
    out |= moments(result.trace, result.squared_frobenius, dimension=result.dimension, noise=noise)
    bounds = result.negative_mass_bounds
    mass = min(max(result.negative_mass.value, bounds[0]), bounds[1])
    out["negative_mass"] = bounded(mass, *bounds, precision=0.0, n=len(result.quadratures))
    out["negative_mass"].errors.probe = result.negative_mass.stderr
    out["effective_rank"] = _effective_rank(out["frobenius_norm"], out["spectral_radius"])
    out |= spectrum_figures(result, out["spectral_radius"])
    return out


def _effective_rank(frobenius: schema.Metric, radius: schema.Metric) -> schema.Metric:
    """||H||_F^2 / ||H||_2^2, also called stable rank: at most the rank, and defined for an indefinite matrix."""
    if not frobenius.value or not radius.value or radius.ci is None or radius.ci[0] <= 0:
        return schema.Metric(value=None, reason="the spectral radius is not known to be above zero")
    # Both are estimates, so their ratio may come out below what no matrix goes below.
    value = max(1.0, (frobenius.value / radius.value) ** 2)
    ci = None
    if frobenius.ci is not None:
        ci = (max(1.0, (frobenius.ci[0] / radius.ci[1]) ** 2), max(1.0, (frobenius.ci[1] / radius.ci[0]) ** 2))
    stderr = None if frobenius.stderr is None else 2 * value * frobenius.stderr / frobenius.value
    return schema.Metric(value=value, stderr=stderr, ci=ci, errors=schema.Errors(probe=stderr), n=frobenius.n)


def trace_metrics(result: Trace[ParameterVector], *, noise: float) -> Metrics:
    """Trace, mean eigenvalue, Frobenius norm."""
    return moments(result.trace, result.squared_frobenius, dimension=result.dimension, noise=noise)


def trace_blocks(
    result: Trace[ParameterVector], blocks: Sequence[Block], space: ParameterSpace, *, noise: float
) -> list[schema.Block]:
    """The trace of each diagonal block."""
    total = result.squared_frobenius
    return [
        schema.Block(
            name=block.name,
            num_parameters=sum(space.numels[p] for p in block.parts),
            metrics={"trace": sampled(estimate, precision=trace_precision(estimate, total, noise=noise))},
        )
        for block, estimate in zip(blocks, result.blocks, strict=False)  # xtrace has none
    ]


def scaled(metric: schema.Metric, factor: float) -> schema.Metric:
    """The metric in another unit."""
    return schema.Metric(
        value=None if metric.value is None else metric.value * factor,
        stderr=None if metric.stderr is None else metric.stderr * factor,
        ci=None if metric.ci is None else (metric.ci[0] * factor, metric.ci[1] * factor),
        errors=schema.Errors(**{k: None if v is None else v * factor for k, v in metric.errors.model_dump().items()}),
        n=metric.n,
        reason=metric.reason,
    )


def root(squares: schema.Metric) -> schema.Metric:
    """The metric of a root from that of the square, its interval mapped end by end."""
    if squares.value is None:
        return squares
    value = float(np.sqrt(max(squares.value, 0.0)))
    slope = 1.0 / (2.0 * value) if value > 0 else 0.0
    ci = squares.ci and (float(np.sqrt(max(squares.ci[0], 0.0))), float(np.sqrt(max(squares.ci[1], 0.0))))
    return schema.Metric(
        value=value,
        stderr=None if squares.stderr is None else squares.stderr * slope,
        ci=ci,
        errors=schema.Errors(**{k: None if v is None else v * slope for k, v in squares.errors.model_dump().items()}),
        n=squares.n,
        reason=squares.reason,
    )
