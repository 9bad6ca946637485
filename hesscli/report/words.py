"""What was measured, in words: the lines over every figure and every table."""

import re

from hesscli.report.schema import Report

DASH = "\N{EM DASH}"
NBSP = "\N{NO-BREAK SPACE}"
KIND = {
    "hessian": "Hessian",
    "ggn": "generalised Gauss-Newton",
    "fisher": "Fisher",
    "empirical-fisher": "empirical Fisher",
}


def headline(report: Report) -> str:
    """Return `MODEL@REVISION`, with a commit cut to eight digits; of an adapter ` on BASE` behind it."""
    revision = report.model.revision or report.model.commit
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        revision = revision[:8]
    name = f"{report.model.id}@{revision}" if revision else report.model.id
    base = re.sub(r"(@[0-9a-f]{8})[0-9a-f]{32}$", r"\1", report.model.base or "")
    return f"{name} on {base}" if base else name


def settings(report: Report) -> str:
    """Return operator, parameters, tokens or images, dtype and the size of the estimate in one line."""
    parts = [
        KIND[report.operator.kind],
        f"{thousands(report.model.num_selected)} parameters",
        amount(report),
        report.model.dtype,
        *_effort(report),
    ]
    return " · ".join(parts)


def amount(report: Report) -> str:
    """Return how many tokens the slice holds, or images: those have no tokens of their own."""
    if report.model.task == "image-classification":
        return plural(report.data.sequences, "image")
    return f"{thousands(report.data.tokens)} tokens"


def tied(text: str) -> str:
    """Return the text with no-break spaces where a value, its error and its unit meet."""
    arms = re.sub(r" (\+[\d.e+-]+) (\N{MINUS SIGN}[\d.e+-]+)", rf"{NBSP}\1{NBSP}\2", text)
    return arms.replace(" ± ", f"{NBSP}±{NBSP}").replace(" %", f"{NBSP}%")


def distrust(report: Report) -> str:
    """Return what a report with a status other than ok says about itself."""
    name = {"not_converged": "NOT CONVERGED", "untrustworthy": "NOT TRUSTWORTHY", "ok": "ok"}[report.status]
    return f"{name}: {report.status_text}" if report.status_text else name


def thousands(number: int) -> str:
    """Return the number with commas between its thousands."""
    return f"{number:,}"


def percent(share: float) -> str:
    """Return a share as per cent, never rounded up to a whole or down to nothing."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    if share < 0.001:
        return "under 0.1 %"
    if share > 0.999:
        return "over 99.9 %"
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.1f} %"


def plural(number: int, noun: str) -> str:
    """Return `1 probe`, `2 probes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _effort(report: Report) -> list[str]:
    if report.spectrum is not None:
        rows = report.spectrum.nodes
        # Deflated outliers stand among the nodes of every probe: they are no steps.
        steps = report.estimator.get("steps_taken", max(map(len, rows)))
        return [f"{plural(len(rows), 'probe')} \N{MULTIPLICATION SIGN} {plural(steps, 'step')}"]
    # A trace's budget of products falls to basis and probes as its method says.
    probes = report.estimator.get("products", report.estimator).get("probes")
    if isinstance(probes, int) and report.command in ("trace", "blockdiag"):
        return [plural(probes, "probe")]
    return [f"{report.cost.matvecs} products"] if report.cost.matvecs else []
