"""Linear solves as metrics, and as the part of the report that is theirs."""

from collections.abc import Iterator, Sequence

from hesscli.events import Warned
from hesscli.linalg.solvers.solution import Ending, Solution
from hesscli.linalg.space import ParameterVector
from hesscli.probes.solve import Solver
from hesscli.recipe import Recipe
from hesscli.report import schema
from hesscli.run.figures.metrics import Metrics, bounded
from hesscli.run.storage.artifacts import VectorFile


def solve_metrics(
    solution: Solution[ParameterVector],
    *,
    solver: Solver,
    plain: bool,
    rhs_norm: float,
    noise: float,
    floor: float | None,
) -> Metrics:
    """Iterations, residual, ||x||, b.x and the condition number; `noise` is the product's relative error.

    `plain` is False with a preconditioner, and the condition number is that of its matrix. With an error of length e
    in H x: the residual is off by e, x by (||r|| + e) / lambda_min, and the form by ||x|| e and by what e adds to
    ||r||^2 / lambda_min.
    """
    count = float(solution.num_iterations)
    error, residual = noise * solution.product_norm, solution.relative_residual * rhs_norm
    least = None if floor is None or floor + solution.damping <= 0 else floor + solution.damping
    out = {
        f"{solver}_iterations": schema.Metric(value=count, ci=(count, count)),
        "relative_residual": _relative_residual(solution, error / rhs_norm if rhs_norm else 0.0),
        "solution_norm": _norm(solution, residual, error, least),
        "quadratic_form": _form(solution, residual, error, least),
    }
    return out | {"condition_number": _condition(solution, least, plain=plain, noise=noise)}


_UNBOUNDED = "no bound: the matrix may be indefinite"


def _relative_residual(solution: Solution[ParameterVector], precision: float) -> schema.Metric:
    if solution.ending is Ending.ZERO:
        return schema.Metric(value=None, reason="the right-hand side is zero")
    value = solution.relative_residual
    ci = (max(0.0, value - precision), value + precision)
    return schema.Metric(value=value, ci=ci, errors=schema.Errors(precision=precision))


def _norm(solution: Solution[ParameterVector], residual: float, error: float, least: float | None) -> schema.Metric:
    if solution.ending is Ending.ZERO:
        return bounded(0.0, 0.0, 0.0, precision=0.0)
    if least is None:
        return schema.Metric(value=solution.norm, reason=_UNBOUNDED)
    arm = residual / least
    metric = bounded(solution.norm, solution.norm - arm, solution.norm + arm, precision=error / least)
    assert metric.ci is not None
    metric.ci = (max(0.0, metric.ci[0]), metric.ci[1])
    return metric


def _form(solution: Solution[ParameterVector], residual: float, error: float, least: float | None) -> schema.Metric:
    if solution.ending is Ending.ZERO:
        return bounded(0.0, 0.0, 0.0, precision=0.0)
    if solution.form_bounds is None or least is None:
        errors = schema.Errors(precision=solution.norm * error)
        return schema.Metric(value=solution.form, errors=errors, reason=_UNBOUNDED)
    low, high = solution.form_bounds
    precision = solution.norm * error + (2 * residual * error + error**2) / least
    return bounded(min(max(solution.form, low), high), low, high, precision=precision)


def _condition(solution: Solution[ParameterVector], least: float | None, *, plain: bool, noise: float) -> schema.Metric:
    """A lower bound: errors of the products of all iterations move a Ritz value by twice their length together."""
    if solution.ritz_ends is None:
        return schema.Metric(value=None, reason="no iteration was made")
    low, high = solution.ritz_ends
    if least is None or low <= 0:
        return schema.Metric(value=None, reason="the matrix may be indefinite: Ritz values do not bound it")
    which = "H + damping" if plain else "the preconditioned matrix"
    moved = 2 * noise * high * solution.num_iterations**0.5
    reason = f"at least, of {which}: from the solver's Ritz values"
    return schema.Metric(value=max(1.0, (high - moved) / (low + moved)), reason=reason)


def solve_systems(
    solutions: Sequence[Solution[ParameterVector]],
    *,
    solver: Solver,
    plain: bool,
    rhs_norm: float,
    noise: float,
    floor: float | None,
) -> list[schema.System]:
    """The solves as they stand in the report."""
    return [
        schema.System(
            damping=s.damping,
            converged=s.converged,
            ending=s.ending.name.lower(),
            residuals=list(s.residuals),
            true_residuals=list(s.true_residuals),
            metrics=solve_metrics(s, solver=solver, plain=plain, rhs_norm=rhs_norm, noise=noise, floor=floor),
            negative_curvature=_negative_curvature(s, noise),
            file=_file_name(s, solutions),
        )
        for s in solutions
    ]


def solution_files(solutions: Sequence[Solution[ParameterVector]], recipe: Recipe) -> list[VectorFile]:
    """A file for each solution, and for a direction of negative curvature, by parameter name."""
    files = []
    for s in solutions:
        facts = {"kind": recipe.operator.kind, "damping": repr(s.damping), "rhs": recipe.estimator.rhs}
        facts |= {"format": "pt", "ending": s.ending.name.lower(), "relative_residual": repr(s.relative_residual)}
        files.append(VectorFile(_file_name(s, solutions), {"": s.vector}, facts))
        if s.negative_curvature is not None:
            facts |= {"rayleigh_quotient": repr(s.negative_curvature.rayleigh_quotient)}
            name = _file_name(s, solutions).replace("solution", "negative-curvature")
            files.append(VectorFile(name, {"": s.negative_curvature.direction}, facts))
    return files


def _file_name(solution: Solution[ParameterVector], solutions: Sequence[Solution[ParameterVector]]) -> str:
    return "solution.safetensors" if len(solutions) == 1 else f"solution-{solution.damping!r}.safetensors"


def _negative_curvature(solution: Solution[ParameterVector], noise: float) -> schema.NegativeCurvature | None:
    found = solution.negative_curvature
    if found is None:
        return None
    return schema.NegativeCurvature(rayleigh_quotient=found.rayleigh_quotient, bar=noise * found.product_norm)


def solve_status(solutions: Sequence[Solution[ParameterVector]]) -> tuple[schema.Status, str]:
    """Ok where all have converged; else what became of the one with the smallest damping that has not."""
    worst = _worst(solutions)
    if worst is None:
        return "ok", ""
    return "not_converged", _where(worst, solutions) + worst.ending.what


def _worst(solutions: Sequence[Solution[ParameterVector]]) -> Solution[ParameterVector] | None:
    return min((s for s in solutions if not s.converged), key=lambda s: s.damping, default=None)


def _where(solution: Solution[ParameterVector], solutions: Sequence[Solution[ParameterVector]]) -> str:
    return "" if len(solutions) == 1 else f"damping {solution.damping:g}: "


def solve_warnings(solutions: Sequence[Solution[ParameterVector]], *, noise: float, plain: bool) -> Iterator[Warned]:
    """What a reader of a solution must know; `plain`: the Ritz values are those of H + damping."""
    if solutions[0].ending is Ending.ZERO:
        yield Warned("zero-right-hand-side", Ending.ZERO.what)
        return
    worst = _worst(solutions)
    if worst is not None and worst.negative_curvature is None:
        yield Warned("not-converged", f"{_where(worst, solutions)}{worst.ending.what}: {worst.ending.remedy}")
    lowest = min(solutions, key=lambda s: s.damping)
    found = lowest.negative_curvature
    if found is not None:
        yield Warned(
            "negative-curvature",
            f"a direction has the Rayleigh quotient {found.rayleigh_quotient:.3g} in H, below -{lowest.damping:g}: "
            f"conjugate gradients stopped; {Ending.NEGATIVE_CURVATURE.remedy}",
        )
    elif plain and lowest.ritz_ends is not None:
        low, high = lowest.ritz_ends
        if low < -2 * noise * max(abs(low), abs(high)):
            yield Warned(
                "indefinite",
                f"H + {lowest.damping:g} is indefinite, with a Ritz value at {low:.3g}: the solution is a saddle of "
                "the quadratic model, not its minimum",
            )
