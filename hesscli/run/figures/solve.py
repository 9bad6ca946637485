"""What a recipe says of a linear solve: its solver, its right-hand side, its preconditioner."""

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import Batch
from hesscli.errors import UsageError
from hesscli.events import OnEvent
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.solvers.preconditioner import Preconditioner, low_rank, mean_diagonal
from hesscli.linalg.space import ParameterVector
from hesscli.probes.solve import Solver
from hesscli.recipe import Recipe

# Enough for the twenty or so outliers of a language model, which are most of what makes the solve slow.
LOW_RANK_STEPS = 30
DIAGONAL_PROBES = 8  # a mean over a tensor needs few


def solver_of(recipe: Recipe) -> Solver:
    """The solver that is asked for, else by the matrix: MINRES where it may be indefinite."""
    if recipe.estimator.solver != "auto":
        return recipe.estimator.solver
    return "minres" if recipe.operator.kind == "hessian" else "cg"


def floor_of(recipe: Recipe) -> float | None:
    """A number that no eigenvalue is below; None for the Hessian."""
    return None if recipe.operator.kind == "hessian" else 0.0


def check_solve(recipe: Recipe) -> None:
    """Raise UsageError where settings of a solve do not go together."""
    estimator, solver = recipe.estimator, solver_of(recipe)
    if min(estimator.damping) == 0 and solver == "cg":
        raise UsageError("estimator.damping", "0 is not for cg: the matrix may be singular", "give more, or minres")
    if estimator.preconditioner != "none" and solver != "cg":
        what = f"{estimator.preconditioner!r} is for cg, and the solver is {solver}"
        raise UsageError("estimator.preconditioner", what, "use none, --operator ggn, or --solver cg")


def check_rows(recipe: Recipe, risk: EmpiricalRisk) -> None:
    """Raise UsageError where the right-hand side is a row that the slice does not have."""
    if recipe.estimator.rhs.startswith("row:"):
        _row(risk, int(recipe.estimator.rhs.removeprefix("row:")))


def right_hand_side(rhs: str, risk: EmpiricalRisk, *, seed: int) -> ParameterVector:
    """The gradient of the slice's loss, of one row's mean loss, or a random vector of unit length."""
    if rhs == "gradient":
        return risk.gradient()
    if rhs == "random":
        v = risk.space.random("gaussian", seed=seed, index=0)
        risk.space.scale(1.0 / risk.space.norm(v), v)
        return v
    return _row(risk, int(rhs.removeprefix("row:"))).gradient()


def _row(risk: EmpiricalRisk, number: int) -> EmpiricalRisk:
    rows = sum(len(b.targets) for b in risk.batches)
    if number >= rows:
        raise UsageError("estimator.rhs", f"'row:{number}' is not in the slice of {rows}", f"at most row:{rows - 1}")
    batch = next(b for b in risk.batches if number < b.first_row + len(b.targets))
    place = slice(number - batch.first_row, number - batch.first_row + 1)
    inputs = {name: value[place] for name, value in batch.inputs.items()}
    return risk.on([Batch(inputs, batch.targets[place], number)])


def preconditioner_of(
    name: str, operator: LinearOperator[ParameterVector], *, seed: int, on_event: OnEvent
) -> Preconditioner[ParameterVector] | None:
    """The preconditioner of that name, made with products of its own; None for `none`."""
    if name == "low-rank":
        return low_rank(operator, steps=LOW_RANK_STEPS, seed=seed, on_event=on_event)
    if name == "diagonal":
        return mean_diagonal(operator, probes=DIAGONAL_PROBES, seed=seed, on_event=on_event)
    return None
