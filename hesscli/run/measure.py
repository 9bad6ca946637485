"""From a probe's name to its result in the report's terms: the one place that branches on the kind of probe."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.preflight import Preflight
from hesscli.events import OnEvent, Warned
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.status import Status
from hesscli.probes.blockdiag import blockdiag
from hesscli.probes.density import density
from hesscli.probes.topk import topk
from hesscli.probes.trace import trace
from hesscli.recipe import Recipe
from hesscli.report import schema
from hesscli.run.blocks import LINEARITY_LIMIT, blockdiag_blocks, blockdiag_metrics, coupling
from hesscli.run.metrics import Metrics, density_metrics, topk_metrics, topk_precision, trace_blocks, trace_metrics
from hesscli.run.observed import ObservedOperator
from hesscli.run.setup import Subject

# A basis may take this part of what is free; the graph and the vectors of the product have the rest.
_BASIS_SHARE = 0.4


@dataclass
class Findings:
    """What a probe adds to a report."""

    estimator: dict[str, Any]
    metrics: Metrics = field(default_factory=dict)
    eigenpairs: list[schema.Eigenpair] = field(default_factory=list)
    spectrum: schema.Spectrum | None = None
    blocks: list[schema.Block] = field(default_factory=list)
    coupling: schema.Coupling | None = None
    status: schema.Status = "ok"
    status_text: str = ""


def measure(
    recipe: Recipe, subject: Subject, operator: ObservedOperator, preflight: Preflight, *, on_event: OnEvent
) -> Findings:
    """Run the recipe's probe. Raises FloatingPointError where a product is not finite."""
    run = {"topk": _topk, "density": _density, "trace": _trace, "blockdiag": _blockdiag}[recipe.probe]
    return run(recipe, subject, operator, preflight.noise, on_event)


def estimator_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that a probe runs with, as they stand in the report and in the run's hash."""
    estimator = recipe.estimator
    settings: dict[str, Any] = {"seed": estimator.seed}
    if recipe.probe != "topk":
        settings["probes"] = recipe.budget("probes")
    if recipe.probe != "blockdiag":
        settings["steps"] = recipe.budget("steps")
    if recipe.probe == "topk":
        settings |= {"k": estimator.k, "which": estimator.which, "tolerance": estimator.tolerance}
    if recipe.probe == "density":
        settings["reorthogonalise"] = estimator.reorthogonalise
    if recipe.probe in ("blockdiag", "trace"):
        settings["by"] = recipe.operator.by
    return settings


def _topk(recipe: Recipe, _subject: Subject, operator: ObservedOperator, noise: float, on_event: OnEvent) -> Findings:
    settings = estimator_settings(recipe)
    result = topk(
        operator,
        k=settings["k"],
        which=settings["which"],
        max_steps=settings["steps"],
        tolerance=settings["tolerance"],
        seed=settings["seed"],
        on_event=on_event,
    )
    floor = topk_precision(result, noise=noise)
    pairs = [
        schema.Eigenpair(value=p.value, residual=p.residual_norm, converged=p.converged, bar=p.residual_norm + floor)
        for p in result.pairs
    ]
    settings |= {"steps_taken": result.num_steps, "orthogonality_loss": result.orthogonality_loss}
    findings = Findings(settings, topk_metrics(result, noise=noise), pairs)
    if result.status is Status.BUDGET_SPENT:
        findings.status, findings.status_text = "not_converged", result.status.value
        missing = sum(not p.converged for p in result.pairs)
        on_event(Warned("not-converged", f"{missing} of {len(pairs)} pairs did not converge: {result.status.value}"))
    return findings


def _density(recipe: Recipe, subject: Subject, operator: ObservedOperator, noise: float, on_event: OnEvent) -> Findings:
    settings = estimator_settings(recipe)
    space = subject.risk.space
    steps = min(settings["steps"], space.dimension)
    if settings["reorthogonalise"] == "auto":
        fits = _basis_fits(space, (settings["probes"] + 1) * steps)
        settings["reorthogonalise"] = "full" if fits else "none"
    deflate = _basis_fits(space, steps)
    if not deflate:
        on_event(_no_room("the outliers are sampled, not counted"))
    result = density(
        operator,
        probes=settings["probes"],
        steps=settings["steps"],
        deflate=deflate,
        reorthogonalise=settings["reorthogonalise"] == "full",
        noise=noise,
        seed=settings["seed"],
        on_event=on_event,
    )
    settings |= {"steps_taken": result.num_steps, "deflated": result.num_deflated}
    findings = Findings(settings, density_metrics(result, noise=noise))
    if recipe.operator.kind != "hessian":
        why = "the matrix is positive semi-definite: no eigenvalue lies below zero"
        findings.metrics["negative_mass"] = schema.Metric(value=0.0, ci=(0.0, 0.0), reason=why)
    findings.spectrum = schema.Spectrum(
        nodes=[q.values.tolist() for q in result.quadratures],
        weights=[q.weights.tolist() for q in result.quadratures],
        residuals=[q.residual_norms.tolist() for q in result.quadratures],
        dimension=result.dimension,
        band=schema.Band(x=result.band.x.tolist(), low=result.band.low.tolist(), high=result.band.high.tolist()),
    )
    return findings


def _no_room(consequence: str) -> Warned:
    return Warned("no-deflation", f"a basis for deflation does not fit in memory: {consequence}")


def _basis_fits(space: ParameterSpace, count: int) -> bool:
    """Whether `count` vectors fit beside what is held now, on every device that bears parameters."""
    width = space.vector_bytes() // space.dimension
    needed: dict[Any, int] = {}
    for device, numel in zip(space.devices, space.numels, strict=True):
        needed[device] = needed.get(device, 0) + count * numel * width
    return all(size <= _BASIS_SHARE * available_bytes(device) for device, size in needed.items())


def _trace(recipe: Recipe, subject: Subject, operator: ObservedOperator, noise: float, on_event: OnEvent) -> Findings:
    settings = estimator_settings(recipe)
    if not _basis_fits(subject.risk.space, settings["steps"]):
        settings["steps"] = 0
        on_event(_no_room("plain Hutchinson, whose interval is wider"))
    result = trace(
        operator,
        probes=settings["probes"],
        steps=settings["steps"],
        blocks=[b.parts for b in subject.blocks],
        seed=settings["seed"],
        on_event=on_event,
    )
    return Findings(
        settings,
        trace_metrics(result, noise=noise),
        blocks=trace_blocks(result, subject.blocks, subject.risk.space, noise=noise),
    )


def _blockdiag(
    recipe: Recipe, subject: Subject, operator: ObservedOperator, noise: float, on_event: OnEvent
) -> Findings:
    settings = estimator_settings(recipe)
    parts = [b.parts for b in subject.blocks]
    result = blockdiag(operator, blocks=parts, probes=settings["probes"], seed=settings["seed"], on_event=on_event)
    worst = float(np.max(result.linearity))
    settings |= {"linearity_residual": worst, "baseline_cosine": _baseline_cosine(subject)}
    findings = Findings(settings)
    if worst > LINEARITY_LIMIT:
        findings.status = "untrustworthy"
        findings.status_text = (
            f"Hv differs from the sum of its block products by {worst:.2g} of its length, above {LINEARITY_LIMIT}: "
            "noise of the product would pass for missing block structure. Use --dtype float32"
        )
        return findings
    findings.metrics = blockdiag_metrics(result, noise=max(noise, worst))
    findings.blocks = blockdiag_blocks(result, subject.blocks, subject.risk.space, noise=max(noise, worst))
    findings.coupling = coupling(result, subject.blocks)
    return findings


def _baseline_cosine(subject: Subject) -> float:
    """The mean cosine of a matrix without block structure: sqrt(n_b / n), which is 1/sqrt(B) for B equal blocks."""
    numels = np.array(subject.risk.space.numels)
    shares = [numels[sorted(b.parts)].sum() / numels.sum() for b in subject.blocks]
    return float(np.mean(np.sqrt(shares)))
