"""solve: right solutions, residuals that are true, bounds that hold, and no step past negative curvature."""

import gc

import minimal
import numpy as np
import pytest
from minimal import DenseOperator, MinimalSpace, language_model_spectrum, with_spectrum
from tiny import dense_hessian, flat, ragged_slice, risk_of, tiny_model, unflat

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.events import ignore
from hesscli.linalg.solvers.preconditioner import low_rank, mean_diagonal
from hesscli.linalg.solvers.solution import Ending
from hesscli.probes.solve import solve
from hesscli.run.figures.solutions import solve_metrics


def run(operator, rhs, *dampings, **options):
    settings = {"solver": "cg", "preconditioner": None, "floor": 0.0, "tolerance": 1e-4, "max_steps": 300}
    return solve(operator, rhs, dampings=dampings, on_event=ignore, **{**settings, **options})


def in_range(operator, *, seed=0):
    """A right-hand side as a gradient is to a Gauss-Newton matrix: long where eigenvalues are large."""
    values, vectors = np.linalg.eigh(operator.matrix)
    entries = np.sqrt(np.abs(values)) * np.random.default_rng(seed).standard_normal(len(values))
    return operator.space.split(vectors @ entries)


def dense_solution(operator, rhs, damping):
    matrix = operator.matrix + damping * np.eye(len(operator.matrix))
    return np.linalg.solve(matrix, operator.space.joined(rhs))


class Noisy:
    """An operator whose products are off by `relative` of their length, differently each time."""

    def __init__(self, exact, relative):
        self.space, self._exact, self._relative = exact.space, exact, relative
        self._rng = np.random.default_rng(0)

    def matvec(self, v):
        out = self._exact.matvec(v)
        error = self.space.split(self._rng.standard_normal(self.space.dimension))
        self.space.axpy(self._relative * self.space.norm(out) / self.space.norm(error), error, out)
        return out


@pytest.mark.parametrize("solver", ["cg", "minres"])
@pytest.mark.parametrize("damping", [3.0, 0.1])
def test_the_solution_is_the_dense_one_and_its_residual_the_true_one(solver, damping):
    operator = with_spectrum(np.abs(language_model_spectrum(300)))
    rhs = in_range(operator)
    (found,) = run(operator, rhs, damping, solver=solver, tolerance=1e-8)
    x, b = operator.space.joined(found.vector), operator.space.joined(rhs)
    truth = dense_solution(operator, rhs, damping)
    assert found.ending is Ending.CONVERGED
    assert x == pytest.approx(truth, abs=1e-5 * np.linalg.norm(truth))
    residual = np.linalg.norm(b - operator.matrix @ x - damping * x) / np.linalg.norm(b)
    assert found.relative_residual == pytest.approx(residual, rel=1e-4)
    assert found.residuals[-1] == pytest.approx(residual, rel=1e-2)
    assert found.norm == pytest.approx(np.linalg.norm(x))
    assert found.product_norm == pytest.approx(np.linalg.norm(operator.matrix @ x))
    assert len(found.residuals) == found.num_iterations + 1
    assert found.residuals[0] == 1.0


def test_an_indefinite_matrix_is_solved_by_minres():
    operator = with_spectrum(language_model_spectrum(300))
    rhs = in_range(operator)
    (found,) = run(operator, rhs, 1.0, solver="minres", floor=None, tolerance=1e-6)
    truth = dense_solution(operator, rhs, 1.0)
    assert found.converged
    assert operator.space.joined(found.vector) == pytest.approx(truth, abs=1e-3 * np.linalg.norm(truth))
    assert found.ritz_ends[0] == pytest.approx(-49.0, rel=1e-6)
    assert found.form_bounds is None


@pytest.mark.parametrize("solver", ["cg", "minres"])
def test_dampings_together_are_dampings_apart_at_the_cost_of_the_smallest(solver):
    operator = with_spectrum(np.geomspace(0.1, 9, 300))
    rhs, dampings = in_range(operator), (1.0, 0.1, 10.0)
    together = run(operator, rhs, *dampings, solver=solver)
    spent, operator.num_matvecs = operator.num_matvecs, 0
    assert [s.damping for s in together] == list(dampings)
    for solution, damping in zip(together, dampings, strict=True):
        (alone,) = run(operator, rhs, damping, solver=solver)
        x = operator.space.joined(alone.vector)
        assert operator.space.joined(solution.vector) == pytest.approx(x, abs=1e-6 * np.linalg.norm(x))
        assert solution.residuals == pytest.approx(alone.residuals, rel=1e-6)
        assert [n for n, _ in solution.true_residuals] == [n for n, _ in alone.true_residuals]
    slowest = max(s.num_iterations for s in together)
    assert spent == slowest + sum(len(s.true_residuals) for s in together)
    assert spent < 0.7 * operator.num_matvecs


@pytest.mark.parametrize(("solver", "shared", "each"), [("cg", 3, 2), ("minres", 4, 3)])
@pytest.mark.parametrize("count", [1, 3])
def test_vectors_held_are_as_many_as_promised(solver, shared, each, count, monkeypatch):
    live, peak = set(), [0]

    class Counted(minimal.Vector):
        def __init__(self, parts):
            super().__init__(parts)
            live.add(id(self))
            peak[0] = max(peak[0], len(live))

        def __del__(self):
            live.discard(id(self))

    monkeypatch.setattr(minimal, "Vector", Counted)
    operator = with_spectrum(np.abs(language_model_spectrum(200)))
    rhs = in_range(operator)
    gc.collect()
    run(operator, rhs, *[0.1 * (i + 1) for i in range(count)], solver=solver, max_steps=15)
    assert peak[0] == shared + each * count


@pytest.mark.parametrize(("damping", "fewer"), [(3.0, 0.5), (1.0, 0.5), (0.1, 0.5)])
def test_a_low_rank_preconditioner_halves_the_iterations_at_least(damping, fewer):
    operator = with_spectrum(np.abs(language_model_spectrum(400)))
    rhs = in_range(operator)
    (plain,) = run(operator, rhs, damping)
    preconditioner = low_rank(operator, steps=30, seed=0, on_event=ignore)
    (found,) = run(operator, rhs, damping, preconditioner=preconditioner)
    truth = dense_solution(operator, rhs, damping)
    assert found.converged
    assert found.num_iterations <= fewer * plain.num_iterations
    assert operator.space.joined(found.vector) == pytest.approx(truth, abs=5e-3 * np.linalg.norm(truth))
    assert found.residuals[-1] == pytest.approx(found.relative_residual, rel=1e-3)
    assert found.ritz_ends[1] / found.ritz_ends[0] < 0.1 * plain.ritz_ends[1] / plain.ritz_ends[0]


def test_mean_diagonals_help_where_parts_differ_in_scale():
    space = MinimalSpace([60, 1, 40])
    scales = np.concatenate([np.full(60, 1e3), [30.0], np.full(40, 0.1)]) ** 0.5
    noise = np.random.default_rng(0).standard_normal((101, 101)) / 15
    operator = DenseOperator(scales[:, None] * (np.eye(101) + noise @ noise.T) * scales, space)
    rhs = space.random("gaussian", seed=0, index=0)
    (plain,) = run(operator, rhs, 0.01)
    diagonal = mean_diagonal(operator, probes=8, seed=0, on_event=ignore)
    several = run(operator, rhs, 0.01, 1.0, preconditioner=diagonal)
    assert several[0].num_iterations < 0.7 * plain.num_iterations
    for found in several:
        assert found.converged
        assert space.joined(found.vector) == pytest.approx(dense_solution(operator, rhs, found.damping), abs=1e-2)


@pytest.mark.parametrize("solver", ["cg", "minres"])
def test_noise_ends_the_solve_where_the_true_residual_stalls(solver):
    exact = with_spectrum(np.abs(language_model_spectrum(400)))
    rhs = in_range(exact)
    for damping, most in ((1.0, 0.1), (0.1, 0.1)):
        (found,) = run(Noisy(exact, 0.01), rhs, damping, solver=solver, tolerance=1e-6)
        assert found.ending is Ending.STAGNATED
        assert found.num_iterations < 150
        assert found.residuals[-1] < found.relative_residual / 1.2
        x = exact.space.joined(found.vector)
        b = exact.space.joined(rhs)
        true = np.linalg.norm(b - exact.matrix @ x - damping * x) / np.linalg.norm(b)
        assert 1e-3 < true < most
        assert found.relative_residual == pytest.approx(true, rel=0.5)


@pytest.mark.parametrize("solver", ["cg", "minres"])
def test_a_recursive_residual_below_the_tolerance_is_not_convergence(solver):
    exact = with_spectrum(np.abs(language_model_spectrum(400)))
    (found,) = run(Noisy(exact, 0.001), in_range(exact), 1.0, solver=solver, tolerance=2e-3)
    assert min(found.residuals) <= 2e-3 < found.relative_residual
    assert not found.converged


@pytest.mark.parametrize("solver", ["cg", "minres"])
@pytest.mark.parametrize("relative", [0.0, 0.003, 0.03])
def test_intervals_of_the_figures_hold_what_noise_does(solver, relative):
    for seed in range(25):
        exact = with_spectrum(np.abs(language_model_spectrum(90, seed=seed)), seed=seed)
        rhs = in_range(exact, seed=seed)
        b = exact.space.joined(rhs)
        (found,) = run(Noisy(exact, relative), rhs, 0.5, solver=solver, max_steps=4 + seed)
        metrics = solve_metrics(found, solver=solver, plain=True, rhs_norm=np.linalg.norm(b), noise=relative, floor=0.0)
        truth, x = dense_solution(exact, rhs, 0.5), exact.space.joined(found.vector)
        residual = np.linalg.norm(b - exact.matrix @ x - 0.5 * x) / np.linalg.norm(b)
        figures = {"relative_residual": residual, "solution_norm": np.linalg.norm(truth), "quadratic_form": b @ truth}
        for name, figure in figures.items():
            low, high = metrics[name].ci
            assert low * (1 - 1e-9) <= figure <= high * (1 + 1e-9), (seed, name)


@pytest.mark.parametrize("bias", [-0.01, 0.01])
def test_intervals_hold_a_bias_of_the_product_that_no_residual_shows(bias):
    exact = with_spectrum(np.linspace(1, 5, 60))
    biased = DenseOperator((1 + bias) * exact.matrix, exact.space)
    rhs = in_range(exact)
    (found,) = run(biased, rhs, 0.5, tolerance=1e-12)
    truth = dense_solution(exact, rhs, 0.5)
    metrics = solve_metrics(found, solver="cg", plain=True, rhs_norm=exact.space.norm(rhs), noise=0.011, floor=0.0)
    figures = {"solution_norm": np.linalg.norm(truth), "quadratic_form": exact.space.joined(rhs) @ truth}
    for name, figure in figures.items():
        low, high = metrics[name].ci
        assert low <= figure <= high
        assert abs(metrics[name].value - figure) > 1e-3 * figure


def test_a_slow_solve_is_not_taken_for_a_stalled_one():
    # Residuals of conjugate gradients rise for long stretches on the way; the true one rises with them.
    operator = with_spectrum(np.geomspace(1e-2, 1e2, 200))
    rhs = operator.space.random("gaussian", seed=0, index=0)
    (found,) = run(operator, rhs, 1e-2, tolerance=1e-3)
    assert found.converged
    assert found.num_iterations > 100
    assert max(residual for _, residual in found.true_residuals) > 2


def test_noise_that_makes_a_direction_look_negative_is_no_finding():
    exact = with_spectrum(np.abs(language_model_spectrum(200)))

    class Flipped:
        """Wrong in its third product alone."""

        space, count = exact.space, 0

        def matvec(self, v):
            self.count += 1
            out = exact.matvec(v)
            if self.count == 3:
                self.space.axpy(-1e4, v, out)
            return out

    (found,) = run(Flipped(), in_range(exact), 0.1)
    assert found.ending is Ending.STAGNATED
    assert found.negative_curvature is None


def test_negative_curvature_ends_conjugate_gradients_with_its_direction():
    operator = with_spectrum(language_model_spectrum(300))
    rhs = in_range(operator)
    found = {s.damping: s for s in run(operator, rhs, 1.0, 60.0, floor=None)}
    stopped, solved = found[1.0], found[60.0]
    assert stopped.ending is Ending.NEGATIVE_CURVATURE
    assert not stopped.converged
    p = operator.space.joined(stopped.negative_curvature.direction)
    quotient = p @ operator.matrix @ p / (p @ p)
    assert np.linalg.norm(p) == pytest.approx(1)
    assert stopped.negative_curvature.rayleigh_quotient == pytest.approx(quotient)
    assert -50 <= quotient <= -1.0
    assert solved.converged
    assert solved.negative_curvature is None
    truth = dense_solution(operator, rhs, 60.0)
    assert operator.space.joined(solved.vector) == pytest.approx(truth, abs=1e-3 * np.linalg.norm(truth))


@pytest.mark.parametrize("eigenvalues", [[-3.0, -1.0, *np.linspace(0.1, 9, 58)], [-2.0] * 20 + [1.0] * 20 + [5.0] * 20])
def test_a_direction_without_curvature_is_neither_negative_nor_a_step_of_any_length(eigenvalues):
    # Damped by what makes the matrix singular, and no more.
    operator = with_spectrum(eigenvalues)
    null = np.linalg.eigh(operator.matrix)[1][:, 0]
    rhs = operator.space.random("gaussian", seed=0, index=0)
    for b in (operator.space.split(null), rhs):
        (found,) = run(operator, b, -min(eigenvalues), floor=None)
        assert not found.converged
        assert np.isfinite(operator.space.joined(found.vector)).all()
        if found.negative_curvature is not None:  # a mixture with what is negative
            assert found.negative_curvature.rayleigh_quotient < min(eigenvalues) - 1e-12
        else:
            assert found.ending is Ending.SINGULAR


def test_negative_curvature_is_found_behind_a_preconditioner_too():
    operator = with_spectrum(language_model_spectrum(300))
    preconditioner = low_rank(operator, steps=30, seed=0, on_event=ignore)
    (found,) = run(operator, in_range(operator), 1.0, preconditioner=preconditioner, floor=None)
    p = operator.space.joined(found.negative_curvature.direction)
    assert found.negative_curvature.rayleigh_quotient == pytest.approx(p @ operator.matrix @ p)
    assert p @ operator.matrix @ p < -1.0


@pytest.mark.parametrize(("solver", "preconditioned"), [("cg", False), ("cg", True), ("minres", False)])
def test_bounds_hold_the_form_however_few_the_steps(solver, preconditioned):
    widths = {}
    for seed in range(12):
        operator = with_spectrum(np.abs(language_model_spectrum(120, seed=seed)), seed=seed)
        rhs = in_range(operator, seed=seed)
        made = low_rank(operator, steps=8, seed=0, on_event=ignore) if preconditioned else None
        for steps in (2, 5, 12, 60):
            for found in run(operator, rhs, 0.05, 2.0, solver=solver, max_steps=steps, preconditioner=made):
                truth = operator.space.joined(rhs) @ dense_solution(operator, rhs, found.damping)
                low, high = found.form_bounds
                assert low <= truth <= high
                widths.setdefault(steps, []).append((high - low) / truth)
    assert np.median(widths[60]) < 1e-4 < np.median(widths[2])


@pytest.mark.parametrize("solver", ["cg", "minres"])
def test_bounds_of_a_noisy_run_do_not_lean_on_its_quadrature(solver):
    for seed in range(20):
        exact = with_spectrum(np.abs(language_model_spectrum(120, seed=seed)), seed=seed)
        rhs = in_range(exact, seed=seed)
        (found,) = run(Noisy(exact, 0.03), rhs, 0.5, solver=solver, tolerance=1e-6)
        truth = exact.space.joined(rhs) @ dense_solution(exact, rhs, 0.5)
        precision = 0.03 * found.product_norm * found.norm  # what the noise of one product does to b.x + x.r
        assert found.form_bounds[0] - precision <= truth <= found.form_bounds[1] + precision


def test_a_preconditioner_is_for_conjugate_gradients_alone():
    operator = with_spectrum(np.linspace(1, 2, 30))
    diagonal = mean_diagonal(operator, probes=2, seed=0, on_event=ignore)
    with pytest.raises(ValueError, match="conjugate gradients"):
        run(operator, in_range(operator), 0.1, solver="minres", preconditioner=diagonal)


def test_a_zero_right_hand_side_costs_nothing():
    operator = with_spectrum(np.linspace(1, 2, 30))
    (found,) = run(operator, operator.space.zeros(), 0.1)
    assert found.ending is Ending.ZERO
    assert found.converged
    assert not operator.space.joined(found.vector).any()
    assert operator.num_matvecs == 0


def test_a_singular_matrix_without_damping_gives_least_squares_and_says_so():
    operator = with_spectrum([*np.zeros(40), *np.linspace(1, 5, 60), -3.0, -2.0])
    rhs = operator.space.random("gaussian", seed=0, index=0)
    (found,) = run(operator, rhs, 0.0, solver="minres", floor=None, tolerance=1e-3)
    b = operator.space.joined(rhs)
    best = np.linalg.lstsq(operator.matrix, b, rcond=1e-10)[0]
    assert found.ending is Ending.LEAST_SQUARES
    assert not found.converged
    least = np.linalg.norm(b - operator.matrix @ best) / np.linalg.norm(b)
    assert found.relative_residual == pytest.approx(least, rel=1e-4)


def test_a_budget_that_is_too_small_is_said():
    operator = with_spectrum(np.abs(language_model_spectrum(200)))
    (found,) = run(operator, in_range(operator), 0.1, max_steps=5)
    assert found.ending is Ending.STEPS_SPENT
    assert found.num_iterations == 5
    assert found.relative_residual > 1e-4


def test_what_is_not_finite_is_refused():
    operator = with_spectrum(np.linspace(1, 2, 9))
    rhs = operator.space.split(np.full(9, np.inf))
    with pytest.raises(FloatingPointError):
        run(operator, rhs, 0.1)
    broken = DenseOperator(np.full((9, 9), np.nan), operator.space)
    with pytest.raises(FloatingPointError):
        run(broken, operator.space.split(np.ones(9)), 0.1)


def test_the_gauss_newton_of_a_checkpoint_is_solved_as_its_dense_matrix_is():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 3, only=lambda n: "layers.1.mlp.down" in n)
    operator = GGNOperator(risk)
    n = risk.space.dimension
    dense = np.array([flat(operator.matvec(unflat(e, risk.space))) for e in np.eye(n)])
    gradient = risk.gradient()
    b = flat(gradient)
    for found in run(operator, gradient, 0.01, 1.0, tolerance=1e-4):
        truth = np.linalg.solve(dense + found.damping * np.eye(n), b)
        assert found.converged
        assert flat(found.vector) == pytest.approx(truth, abs=3e-3 * np.linalg.norm(truth))
        precision = 1e-5 * found.product_norm * found.norm
        assert found.form_bounds[0] - precision <= b @ truth <= found.form_bounds[1] + precision


def test_the_hessian_of_a_checkpoint_is_solved_as_its_dense_matrix_is():
    model = tiny_model("llama")
    chosen = [n for n, _ in model.named_parameters() if "layers.1.mlp" in n]
    risk = risk_of(model, ragged_slice(), 3, only=lambda n: n in chosen)
    kept = np.concatenate([np.full(p.numel(), n in chosen) for n, p in model.named_parameters()])
    dense = dense_hessian("llama")[np.ix_(kept, kept)]
    b = flat(risk.gradient())
    operator = HessianOperator(risk, keep_graph=True)
    (found,) = run(operator, risk.gradient(), 0.1, solver="minres", floor=None, tolerance=1e-4)
    values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    truth = vectors @ ((vectors.T @ b) / (values + 0.1))
    assert values[0] < -0.2
    assert found.converged
    error = np.linalg.norm(flat(found.vector) - truth)
    assert error <= 2 * found.relative_residual * np.linalg.norm(b) / np.abs(values + 0.1).min()
    assert error < 0.02 * np.linalg.norm(truth)
