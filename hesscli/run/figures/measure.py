"""From a probe's name to its result in the report's terms: the one place that branches on the kind of probe."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hesscli.curvature.trust.product_errors import ErrorsAlong
from hesscli.errors import DoesNotFitError
from hesscli.events import Noted, OnEvent, Warned
from hesscli.linalg.status import Status
from hesscli.probes.blockdiag import blockdiag
from hesscli.probes.density import density
from hesscli.probes.solve import solve
from hesscli.probes.top_curvature import MOST_STEPS, top_curvature
from hesscli.probes.trace import Method, basis_length, trace
from hesscli.recipe import Recipe
from hesscli.recipe.blocks import load_blocks
from hesscli.report import schema
from hesscli.run.figures.basis import basis_fits, storage_of
from hesscli.run.figures.blocks import (
    LINEARITY_LIMIT,
    blockdiag_blocks,
    blockdiag_metrics,
    coupling,
    top_block_curvature,
)
from hesscli.run.figures.data_error import (
    Groups,
    add_data,
    add_to_ends,
    add_to_moments,
    add_to_radius,
    groups_of,
    say_not_measured,
)
from hesscli.run.figures.data_error_blocks import (
    BLOCK_METRICS,
    add_to_blocks,
    add_to_forms,
    block_squares_without_one,
)
from hesscli.run.figures.diagonal import diagonal_file, few_resolved, resolved_metric, tensor_means
from hesscli.run.figures.metrics import Metrics, density_metrics, topk_metrics, trace_blocks, trace_metrics
from hesscli.run.figures.pairs import eigenpairs, measure_pairs
from hesscli.run.figures.samples import blockdiag_samples, density_samples, pair_samples, trace_samples
from hesscli.run.figures.solutions import solution_files, solve_status, solve_systems, solve_warnings
from hesscli.run.figures.solve import LOW_RANK_STEPS, floor_of, preconditioner_of, right_hand_side, solver_of
from hesscli.run.observed import ObservedOperator
from hesscli.run.setup import Subject
from hesscli.run.storage.artifacts import VectorFile


@dataclass
class Findings:
    """What a probe adds to a report."""

    estimator: dict[str, Any]
    metrics: Metrics = field(default_factory=dict)
    samples: dict[str, schema.Samples] = field(default_factory=dict)
    eigenpairs: list[schema.Eigenpair] = field(default_factory=list)
    spectrum: schema.Spectrum | None = None
    blocks: list[schema.Block] = field(default_factory=list)
    coupling: schema.Coupling | None = None
    diagonal: schema.Diagonal | None = None
    solve: schema.Solve | None = None
    files: list[VectorFile] = field(default_factory=list)
    status: schema.Status = "ok"
    status_text: str = ""


def measure(
    recipe: Recipe,
    subject: Subject,
    operator: ObservedOperator,
    *,
    noise: float,
    errors_along: ErrorsAlong,
    on_event: OnEvent,
) -> Findings:
    """Run the recipe's probe on a product of relative error `noise`, and of the error along any vector that it tells.

    Raises FloatingPointError where a product is not finite.
    """
    subject.risk.space.storage = storage_of(recipe)
    if recipe.probe == "topk":
        return _topk(recipe, subject, operator, noise, errors_along, on_event)
    run = {"density": _density, "trace": _trace, "blockdiag": _blockdiag, "solve": _solve}[recipe.probe]
    return run(recipe, subject, operator, noise, on_event)


def estimator_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that a probe runs with, as they stand in the report and in the run's hash."""
    estimator = recipe.estimator
    settings: dict[str, Any] = {"seed": estimator.seed, "data_error": estimator.data_error}
    if recipe.probe not in ("topk", "solve"):
        settings["probes"] = recipe.budget("probes")
    if recipe.probe != "blockdiag":
        settings["steps"] = recipe.budget("steps")
    if recipe.probe == "topk":
        settings |= {"k": estimator.k, "which": estimator.which, "tolerance": estimator.tolerance}
        settings |= {"krylov_dim": estimator.krylov_dim, "basis_product": estimator.basis_product}
        settings |= {"held_out": estimator.held_out}
        if estimator.held_out_from is not None:  # names of other runs stay
            settings |= {"held_out_from": estimator.held_out_from}
    if recipe.probe in ("topk", "density", "trace"):
        settings["basis_dtype"] = estimator.basis_dtype
    if recipe.probe == "density":
        settings["reorthogonalise"] = estimator.reorthogonalise
    if recipe.probe in ("blockdiag", "trace"):
        path = recipe.operator.blocks
        settings |= {"by": recipe.operator.by} if path is None else {"blocks": load_blocks(Path(path))}
    if recipe.probe == "blockdiag":
        settings["top"] = estimator.top
    if recipe.probe == "trace":
        settings |= {"method": estimator.method, "diagonal": estimator.diagonal}
    if recipe.probe == "solve":
        settings |= {"damping": sorted(set(estimator.damping)), "solver": solver_of(recipe), "rhs": estimator.rhs}
        settings |= {"preconditioner": estimator.preconditioner, "tolerance": estimator.tolerance}
    return settings


def _topk(
    recipe: Recipe,
    subject: Subject,
    operator: ObservedOperator,
    noise: float,
    errors_along: ErrorsAlong,
    on_event: OnEvent,
) -> Findings:
    result, spread, settings = measure_pairs(recipe, subject, operator, errors_along, on_event)
    pairs = eigenpairs(result, spread, noise=noise)
    metrics = topk_metrics(result, noise=noise, product_errors=spread.product_errors)
    samples = pair_samples(metrics, spread)
    for name, one in samples.items():
        add_data(metrics, samples, name, np.array(one.data))
    add_to_radius(metrics, samples)
    why = "--data-error is off" if recipe.estimator.data_error == "off" else "the slice has too few rows"
    say_not_measured(metrics, _ENDS, why)
    findings = Findings(estimator_settings(recipe) | settings, metrics, samples, pairs)
    if result.status in (Status.BUDGET_SPENT, Status.NOT_CERTIFIED):
        findings.status, findings.status_text = "not_converged", result.status.value
        missing = sum(not p.converged for p in result.pairs)
        on_event(Warned("not-converged", f"{missing} of {len(pairs)} pairs did not converge: {result.status.value}"))
    return findings


def _density(recipe: Recipe, subject: Subject, operator: ObservedOperator, noise: float, on_event: OnEvent) -> Findings:
    settings = estimator_settings(recipe)
    space = subject.risk.space
    steps = min(settings["steps"], space.dimension)
    if settings["reorthogonalise"] == "auto":
        fits = basis_fits(space, *[steps] * (settings["probes"] + 1))
        settings["reorthogonalise"] = "full" if fits else "none"
    window = _window(settings["reorthogonalise"])
    if window and not basis_fits(space, settings["probes"] * window):
        what = f"{settings['probes']} times {window} vectors do not fit in memory"
        raise DoesNotFitError("estimator.reorthogonalise", what, "lower N of window:N, or use none")
    deflate = basis_fits(space, steps)
    if not deflate:
        on_event(_no_room("the outliers are sampled, not counted"))
    groups = groups_of(subject, asked=settings["data_error"], on_event=on_event)
    result = density(
        operator,
        probes=settings["probes"],
        steps=settings["steps"],
        deflate=deflate,
        window=window,
        semi_definite=recipe.operator.kind != "hessian",
        noise=noise,
        seed=settings["seed"],
        on_event=on_event,
        quadratic_forms=None if groups is None else groups.forms(operator),
    )
    settings |= {"steps_taken": result.num_steps, "deflated": result.num_deflated, "basis": recipe.estimator.basis}
    if result.effective_dimension is not None:
        settings["effective_dimension_damping"] = result.effective_dimension.damping
    findings = Findings(settings, density_metrics(result, noise=noise), density_samples(result))
    if recipe.operator.kind != "hessian":
        why = "the matrix is positive semi-definite: no eigenvalue lies below zero"
        findings.metrics["negative_mass"] = schema.Metric(value=0.0, ci=(0.0, 0.0), reason=why)
    figures = (findings.metrics, findings.samples)
    add_to_moments(*figures, groups, operator, seed=settings["seed"], on_event=on_event)
    if groups is not None:
        add_to_ends(*figures, groups, result.end_forms)
    why = _why_no_data_error(settings, groups, "no vector of that end is held")
    say_not_measured(findings.metrics, [*_MOMENTS, *_ENDS], why)
    findings.spectrum = schema.Spectrum(
        nodes=[q.values.tolist() for q in result.quadratures],
        weights=[q.weights.tolist() for q in result.quadratures],
        residuals=[q.residual_norms.tolist() for q in result.quadratures],
        dimension=result.dimension,
        band=schema.Band(x=result.band.x.tolist(), low=result.band.low.tolist(), high=result.band.high.tolist()),
        unresolved=schema.Unresolved(**asdict(result.unresolved)),
    )
    return findings


_ENDS = ("lambda_max", "lambda_min", "spectral_radius")
_MOMENTS = ("trace", "mean_eigenvalue", "frobenius_norm")


def _why_no_data_error(settings: dict[str, Any], groups: Groups | None, otherwise: str) -> str:
    if settings["data_error"] == "off":
        return "--data-error is off"
    return "the slice has too few rows" if groups is None else otherwise


def _window(words: str) -> int | None:
    """The number of vectors that a probe's next one is made orthogonal to; None for all of them."""
    if words == "full":
        return None
    return int(words.removeprefix("window:")) if words.startswith("window:") else 0


def _no_room(consequence: str) -> Warned:
    return Warned("no-deflation", f"a basis for deflation does not fit in memory: {consequence}")


def _trace(recipe: Recipe, subject: Subject, operator: ObservedOperator, noise: float, on_event: OnEvent) -> Findings:
    settings = estimator_settings(recipe)
    space = subject.risk.space
    method: Method = "krylov" if settings["method"] == "auto" else settings["method"]
    if not basis_fits(space, basis_length(method, probes=settings["probes"], steps=settings["steps"])):
        if settings["method"] != "auto":
            remedy = "lower --steps and --probes, or use --method hutchinson"
            raise DoesNotFitError("estimator.method", f"the basis of {method} does not fit in memory", remedy)
        method = "hutchinson"
        on_event(_no_room("plain Hutchinson, whose interval is wider"))
    if method == "xtrace":
        on_event(Noted("xtrace gives the trace and the Frobenius norm, and no block traces"))
    result = trace(
        operator,
        method=method,
        probes=settings["probes"],
        steps=settings["steps"],
        blocks=[b.parts for b in subject.blocks],
        diagonal=settings["diagonal"],
        seed=settings["seed"],
        on_event=on_event,
    )
    settings |= {"method": method, "products": {"basis": result.num_basis, "probes": result.num_probes}}
    settings["basis"] = recipe.estimator.basis
    findings = Findings(
        settings,
        trace_metrics(result, noise=noise + result.rounding),
        samples=trace_samples(result, subject.blocks, independent=method != "xtrace"),
        blocks=trace_blocks(result, subject.blocks, space, noise=noise + result.rounding),
    )
    groups = groups_of(subject, asked=settings["data_error"], on_event=on_event)
    figures = (findings.metrics, findings.samples)
    add_to_moments(*figures, groups, operator, seed=settings["seed"], on_event=on_event)
    say_not_measured(findings.metrics, _MOMENTS, _why_no_data_error(settings, groups, "the matrix is zero"))
    if result.diagonal is not None:
        file, share = diagonal_file(result.diagonal)
        if (warning := few_resolved(share)) is not None:
            on_event(warning)
        precision = findings.metrics["trace"].errors.precision or 0.0
        findings.metrics["diagonal_resolved"] = resolved_metric(share, result.diagonal.count)
        findings.diagonal = schema.Diagonal(file=file.name, tensors=tensor_means(result, space, precision=precision))
        findings.files.append(file)
    return findings


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
    findings.samples = blockdiag_samples(result, subject.blocks)
    findings.blocks = blockdiag_blocks(result, subject.blocks, subject.risk.space, noise=max(noise, worst))
    findings.coupling = coupling(result, subject.blocks)
    groups = None
    if settings["data_error"] == "on":
        groups = groups_of(subject, asked="on", on_event=on_event)
    if groups is not None:
        squares = block_squares_without_one(groups, operator, parts, seed=settings["seed"], on_event=on_event)
        add_to_blocks(findings.metrics, findings.samples, findings.blocks, squares)
    why = f"--data-error on takes it, at {2 * len(parts)} products more"
    if settings["data_error"] != "auto":
        why = _why_no_data_error(settings, groups, "a product is zero")
    say_not_measured(findings.metrics, BLOCK_METRICS, why)
    if settings["top"] and basis_fits(subject.risk.space, MOST_STEPS):
        found = top_curvature(operator, blocks=parts, count=settings["top"], seed=settings["seed"], on_event=on_event)
        top = [top_block_curvature(one, noise=max(noise, worst)) for one in found]
        findings.metrics["top_curvature_inside"] = top[0].inside
        if findings.coupling is not None:
            findings.coupling.top = top
    elif settings["top"]:
        on_event(Warned("no-eigenvectors", f"{MOST_STEPS} vectors do not fit in memory: no top eigenvector is split"))
    return findings


def _solve(recipe: Recipe, subject: Subject, operator: ObservedOperator, noise: float, on_event: OnEvent) -> Findings:
    settings = estimator_settings(recipe)
    space, seed, before = subject.risk.space, settings["seed"], operator.num_matvecs
    if settings["preconditioner"] == "low-rank" and not basis_fits(space, 2 * LOW_RANK_STEPS):
        what = f"the basis of a low-rank preconditioner, up to {2 * LOW_RANK_STEPS} vectors, does not fit"
        raise DoesNotFitError("estimator.preconditioner", what, "use diagonal or none")
    preconditioner = preconditioner_of(settings["preconditioner"], operator, seed=seed, on_event=on_event)
    spent = operator.num_matvecs - before
    rhs = right_hand_side(settings["rhs"], subject.risk, seed=seed)
    rhs_norm = space.norm(rhs)
    solutions = solve(
        operator,
        rhs,
        dampings=settings["damping"],
        solver=settings["solver"],
        preconditioner=preconditioner,
        floor=floor_of(recipe),
        tolerance=settings["tolerance"],
        max_steps=settings["steps"],
        on_event=on_event,
    )
    plain = preconditioner is None
    for warning in solve_warnings(solutions, noise=noise, plain=plain):
        on_event(warning)
    systems = solve_systems(
        solutions, solver=settings["solver"], plain=plain, rhs_norm=rhs_norm, noise=noise, floor=floor_of(recipe)
    )
    findings = Findings(settings, systems[0].metrics)
    groups = groups_of(subject, asked=settings["data_error"], on_event=on_event)
    if groups is not None:
        gradient = settings["rhs"] == "gradient"
        add_to_forms(systems, findings.samples, solutions, groups, operator, gradient=gradient)
    why = _why_no_data_error(settings, groups, "the solve has not converged")
    say_not_measured(findings.metrics, ["quadratic_form"], why)
    findings.solve = schema.Solve(
        solver=settings["solver"],
        rhs=settings["rhs"],
        rhs_norm=rhs_norm,
        tolerance=settings["tolerance"],
        preconditioner=settings["preconditioner"],
        preconditioner_rank=None if preconditioner is None else preconditioner.rank,
        preconditioner_matvecs=spent,
        systems=systems,
    )
    findings.files = solution_files(solutions, recipe)
    findings.status, findings.status_text = solve_status(solutions)
    return findings


def _baseline_cosine(subject: Subject) -> float:
    """The mean cosine of a matrix without block structure: sqrt(n_b / n), which is 1/sqrt(B) for B equal blocks."""
    numels = np.array(subject.risk.space.numels)
    shares = [numels[sorted(b.parts)].sum() / numels.sum() for b in subject.blocks]
    return float(np.mean(np.sqrt(shares)))
