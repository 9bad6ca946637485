"""One plain sentence that says what was found, and no more than the figures support."""

from hesscli.report.curves import share_within
from hesscli.report.figures.blocks import baseline
from hesscli.report.figures.stems import ends
from hesscli.report.interval import figure
from hesscli.report.rounding import significant
from hesscli.report.schema import Eigenpair, Metric, Report, Spectrum
from hesscli.report.words import percent, plural

# Below this relative error every block acts all but alone; below the second it does so in part.
ALONE, IN_PART = 0.2, 0.7


def sentence(report: Report) -> str:
    """Return what was found; where the run says that it cannot be trusted, that and nothing else."""
    said = report.status_text.rstrip(".")
    if report.status == "untrustworthy":
        return f"These figures cannot be trusted{f': {said}' if said else ''}."
    found = {"density": _density, "topk": _topk, "trace": _trace, "blockdiag": _blockdiag, "solve": _solve}
    text = found[report.command](report)
    text = text[:1].upper() + text[1:] + "."
    if report.status == "not_converged":
        return f"Not converged{f' ({said})' if said else ''}, so take this as provisional: {text[:1].lower()}{text[1:]}"
    return text


def _density(report: Report) -> str:
    parts = [_ends(report)]
    if report.spectrum is not None:
        parts.append(_concentration(report.spectrum))
    return "; ".join(part for part in parts if part) or "the density was measured, but no end of the spectrum"


def _topk(report: Report) -> str:
    pairs = report.eigenpairs
    missing = [pair for pair in pairs if not pair.converged]
    parts = [_ends(report)]
    above, below = ends(pairs)
    end, word, beyond = (above, "largest", "larger") if above else (below, "smallest", "smaller")
    if end and not end[0].converged:
        parts = [f"the {word} eigenvalue has not converged: {_nearest(end[0])}, and a {beyond} one may be missing"]
    if missing and len(missing) < len(pairs):
        verb = "has" if len(missing) == 1 else "have"
        parts.append(f"{len(missing)} of {plural(len(pairs), 'pair')} {verb} not converged")
    elif missing:
        parts.append("no pair has converged")
    elif pairs:
        few = {1: "it converged", 2: "both pairs converged"}
        parts.append(few.get(len(pairs), f"all {len(pairs)} pairs converged"))
    return "; ".join(part for part in parts if part) or "no eigenpair was found"


def _trace(report: Report) -> str:
    trace, mean, norm = (_found(report, name) for name in ("trace", "mean_eigenvalue", "frobenius_norm"))
    if trace is None:
        return "the trace could not be had"
    text = f"the trace is {figure(trace)}"
    if mean is not None:
        text += f", a mean eigenvalue of {figure(mean)}"
    if trace.ci is None:
        text += "; its error was not measured"
    elif trace.ci[0] <= 0 <= trace.ci[1]:
        text += "; whether it is positive or negative is not determined"
    return text if norm is None else f"{text}; the Frobenius norm is {figure(norm)}"


def _blockdiag(report: Report) -> str:
    error, cosine, count = _found(report, "relative_error"), _found(report, "cosine"), len(report.blocks)
    if count < 2:
        return "one block is the whole matrix: the test says nothing"
    if error is None:
        return "the relative error could not be had, so the test says nothing"
    low, high = error.ci or (_value(error), _value(error))
    if high < ALONE:
        verdict = "block-diagonal curvature holds closely"
    elif low > IN_PART:
        verdict = "block-diagonal curvature does not hold"
    else:
        verdict = "block-diagonal curvature holds only in part"
    text = f"{verdict}: over {count} blocks the relative error is {figure(error)} (0 if it held, near 1 if not)"
    if cosine is not None:
        _, expected = baseline([b.num_parameters for b in report.blocks])
        text += f" and the cosine {figure(cosine)}, {_against(cosine, expected)}"
    return text


def _solve(report: Report) -> str:
    solve = report.solve
    if solve is None:
        return "nothing was solved"
    system = min(solve.systems, key=lambda s: s.damping)
    if system.ending == "zero":
        return "the right-hand side is zero, and so is the solution"
    form, count = _found(report, "quadratic_form"), len(system.residuals) - 1
    took = f"{plural(count, 'iteration')} of {'conjugate gradients' if solve.solver == 'cg' else 'MINRES'}"
    text = (
        f"with damping {system.damping:g}, {took} took the residual to {significant(system.true_residuals[-1][1], 2)}"
    )
    if form is not None and form.ci is not None:
        what = "the Newton decrement squared" if solve.rhs == "gradient" else "the form b.x"
        text += f"; {what} is {figure(form)}"
    if system.negative_curvature is not None:
        quotient = significant(system.negative_curvature.rayleigh_quotient, 3)
        text += f"; along a direction that it met, the curvature is {quotient}"
    if len(solve.systems) > 1:
        text += f"; {sum(s.converged for s in solve.systems)} of {len(solve.systems)} dampings converged"
    return text


def _ends(report: Report) -> str:
    top, bottom = _found(report, "lambda_max"), _found(report, "lambda_min")
    if top is None:
        return "" if bottom is None else f"the smallest eigenvalue is {figure(bottom)}"
    text = f"the largest eigenvalue is {figure(top)}"
    if bottom is None:
        return text
    low, high = bottom.ci or (_value(bottom), _value(bottom))
    if low <= 0 <= high:
        return f"{text}; the smallest, {figure(bottom)}, is not told apart from zero"
    if low > 0 or _value(top) <= 0:
        return f"{text} and the smallest {figure(bottom)}"
    ratio = significant(_value(top) / -_value(bottom), 2)
    return f"{text}, about {ratio} times the size of the most negative one, {figure(bottom)}"


def _concentration(spectrum: Spectrum) -> str:
    """Return how near zero most of the spectrum lies, from the bounds of the distribution alone."""
    if spectrum.band is None:
        return ""
    largest = max(abs(node) for row in spectrum.nodes for node in row)
    for power in range(-12, 13):
        radius = 10.0**power
        if radius >= largest / 3:
            return ""
        least, most = share_within(spectrum.band, radius)
        if least >= 0.5:
            low, high = percent(least), percent(most)
            share = low if low == high else f"between {low} and {high}"
            return f"{share} of the spectrum lies within {radius:g} of zero"
    return ""


def _against(cosine: Metric, expected: float) -> str:
    low, high = cosine.ci or (_value(cosine), _value(cosine))
    reference = f"the {expected:.2f} of a matrix without block structure"
    if low > expected:
        return f"above {reference}"
    return f"below {reference}" if high < expected else f"no different from {reference}"


def _nearest(pair: Eigenpair) -> str:
    return f"one lies within {significant(pair.residual, 2)} of {significant(pair.value, 3)}"


def _found(report: Report, name: str) -> Metric | None:
    """Return the metric if the report has it with a value."""
    metric = report.metrics.get(name)
    return None if metric is None or metric.value is None else metric


def _value(metric: Metric) -> float:
    return 0.0 if metric.value is None else metric.value
