"""(H + damping I) x = b for one or several dampings, judged by the true residual.

The recursive residual of a Krylov solver is blind to the product's own error: with 1 % of noise it goes on to 1e-10
while the true one stays at 2e-2. So the true one is taken every few iterations, and it alone decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.solvers.conjugate_gradient import ConjugateGradients, curvature_rounding
from hesscli.linalg.solvers.linear_system import Checked, LinearSystem
from hesscli.linalg.solvers.minres import Minres
from hesscli.linalg.solvers.preconditioner import Preconditioner
from hesscli.linalg.solvers.solution import Ending, NegativeCurvature, Solution

V = TypeVar("V")
Solver = Literal["cg", "minres"]

_CHECK_EVERY = 10  # iterations: a tenth more products
_STALLED = 0.9  # of the best true residual so far: less progress than this between two checks is none
_APART = 1.2  # the true residual over the recursive one: the product's error is most of what is left


def solve(
    operator: LinearOperator[V],
    rhs: V,
    *,
    dampings: Sequence[float],
    solver: Solver,
    preconditioner: Preconditioner[V] | None,
    floor: float | None,
    tolerance: float,
    max_steps: int,
    on_event: OnEvent,
) -> list[Solution[V]]:
    """Solve for each damping, in the order given, by conjugate gradients or MINRES from x = 0.

    One Krylov run serves every damping, and ends when the last has: at most `max_steps` products, and one for each
    damping at every tenth step and at its end. A preconditioner is for conjugate gradients alone and changes with the
    damping: the systems are then solved one after the other, each with its own budget. Where conjugate gradients
    meet negative curvature the smallest damping has ended (one product certifies it), and the others start again.

    Vectors held: the right-hand side and, with conjugate gradients, a residual, a product and two for each damping
    (the solution, a direction); with MINRES two of the Lanczos run, a product and three for each damping. The solution
    alone is kept of a damping that has ended. A preconditioner has its own. `floor` is a number that no eigenvalue of
    H is below, None where none is known: it is what bounds on b.x need.

    Raises FloatingPointError where the right-hand side or a product is not finite.
    """
    space = operator.space
    rhs_norm = space.norm(rhs)
    if not np.isfinite(rhs_norm):
        msg = "the right-hand side is not finite"
        raise FloatingPointError(msg)
    if rhs_norm == 0:
        return [
            Solution(d, space.zeros(), Ending.ZERO, (0.0,), ((0, 0.0),), 0.0, 0.0, 0.0, (0.0, 0.0), None, None)
            for d in dampings
        ]
    if preconditioner is not None and solver != "cg":
        msg = "a preconditioner is for conjugate gradients"
        raise ValueError(msg)
    problem = _Problem(LinearSystem(operator, rhs, rhs_norm, floor), solver, preconditioner, tolerance, max_steps)
    on_event(Started("solve", max_steps if preconditioner is None else max_steps * len(dampings)))
    found: dict[float, Solution[V]] = {}
    while len(found) < len(dampings):
        left = [d for d in dampings if d not in found]
        found |= _run(problem, left if preconditioner is None else left[:1], on_event)
    on_event(Finished("solve"))
    return [found[d] for d in dampings]


@dataclass(frozen=True, slots=True)
class _Problem(Generic[V]):
    """What stands during all runs."""

    system: LinearSystem[V]
    solver: Solver
    preconditioner: Preconditioner[V] | None
    tolerance: float
    max_steps: int

    def start(self, dampings: Sequence[float]) -> ConjugateGradients[V] | Minres[V]:
        space, rhs = self.system.operator.space, self.system.rhs
        if self.solver == "minres":
            return Minres.start(space, rhs, dampings=dampings, null_tolerance=self.tolerance)
        return ConjugateGradients.start(space, rhs, dampings=dampings, preconditioner=self.preconditioner)


@dataclass(slots=True)
class _Course:
    """What became of one damping's residuals."""

    damping: float
    residuals: list[float] = field(default_factory=lambda: [1.0])
    checks: list[tuple[int, float]] = field(default_factory=lambda: [(0, 1.0)])
    met: bool = False
    """The recursive residual has been below the tolerance."""


def _run(problem: _Problem[V], dampings: Sequence[float], on_event: OnEvent) -> dict[float, Solution[V]]:
    """The solutions of one Krylov run: all, or that of the smallest damping where its curvature was negative."""
    iteration = problem.start(dampings)
    courses = [_Course(d) for d in dampings]
    found: dict[float, Solution[V]] = {}
    while courses and not iteration.indefinite:
        iteration.expand(problem.system.operator)
        for course in list(courses):
            if iteration.indefinite and course.damping > min(dampings):
                continue
            course.residuals.append(iteration.residual_norm(course.damping) / problem.system.rhs_norm)
            solution = _ended(problem, course, iteration)
            if solution is not None:
                found[course.damping] = solution
                courses.remove(course)
                iteration.drop(course.damping)
        slowest = max((c.residuals[-1] for c in courses), default=0.0)
        words = f"residual {slowest:.1e}" if courses else ""
        on_event(Advanced("solve", iteration.num_matvecs, words, {"residual": slowest} if courses else {}))
    return found


def _ended(problem: _Problem[V], course: _Course, iteration: ConjugateGradients[V] | Minres[V]) -> Solution[V] | None:
    """The solution if the course has come to its end; takes the true residual where it is due."""
    n, damping, tolerance = iteration.num_matvecs, course.damping, problem.tolerance
    singular = isinstance(iteration, Minres) and iteration.least_squares(damping)
    over = iteration.exhausted or iteration.indefinite or singular
    last = over or n == problem.max_steps
    first = not course.met and course.residuals[-1] <= tolerance
    if not (last or first or n - course.checks[-1][0] >= _CHECK_EVERY):
        return None
    course.met = course.met or first
    size = iteration.size(damping) if isinstance(iteration, Minres) and singular else None
    checked = problem.system.check(iteration.solution(damping), damping, size=size, tolerance=tolerance)
    best = min(residual for _, residual in course.checks)
    course.checks.append((n, checked.residual))
    apart = checked.residual > _APART * course.residuals[-1]
    flat, negative = _without_curvature(problem, iteration)
    if checked.residual <= tolerance:
        ending = Ending.CONVERGED
    elif negative is not None:
        ending = Ending.NEGATIVE_CURVATURE
    elif flat:
        ending = Ending.SINGULAR
    elif checked.least_squares:
        ending = Ending.LEAST_SQUARES
    elif over or (apart and checked.residual > _STALLED * best):
        ending = Ending.STAGNATED
    elif last:
        ending = Ending.STEPS_SPENT
    else:
        return None
    return _solution(problem, course, iteration, checked, ending, negative)


def _solution(
    problem: _Problem[V],
    course: _Course,
    iteration: ConjugateGradients[V] | Minres[V],
    checked: Checked,
    ending: Ending,
    negative: NegativeCurvature[V] | None,
) -> Solution[V]:
    alphas, betas = iteration.tridiagonal()
    plain = problem.preconditioner is None
    ends = None
    if alphas:
        values = eigvalsh_tridiagonal(alphas, betas[:-1])
        shift = course.damping if plain else 0.0
        ends = float(values[0]) + shift, float(values[-1]) + shift
    bounds = problem.system.form_bounds(
        checked,
        damping=course.damping,
        recursive=course.residuals[-1],
        lanczos=(alphas, betas) if plain and alphas else None,
    )
    return Solution(
        damping=course.damping,
        vector=iteration.solution(course.damping),
        ending=ending,
        residuals=tuple(course.residuals),
        true_residuals=tuple(course.checks[1:]),
        norm=checked.norm,
        product_norm=checked.product_norm,
        form=checked.form,
        form_bounds=bounds,
        ritz_ends=ends,
        negative_curvature=negative,
    )


def _without_curvature(
    problem: _Problem[V], iteration: ConjugateGradients[V] | Minres[V]
) -> tuple[bool, NegativeCurvature[V] | None]:
    """Whether the direction that conjugate gradients stopped at has no curvature, and the direction if it has negative.

    By a product of its own, for noise may make either; rounding is neither.
    """
    if not isinstance(iteration, ConjugateGradients) or not iteration.indefinite:
        return False, None
    space, damping = problem.system.operator.space, iteration.damping
    p = space.copy(iteration.direction())
    space.scale(1.0 / space.norm(p), p)
    product = problem.system.operator.matvec(p)
    quotient, product_norm = space.inner(p, product), space.norm(product)
    rounding = curvature_rounding(space, product_norm=product_norm, length=1.0, damping=damping)
    if quotient + damping >= -rounding:
        return quotient + damping <= rounding, None
    return False, NegativeCurvature(quotient, p, product_norm)
