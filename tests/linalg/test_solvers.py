"""Conjugate gradients, MINRES and their preconditioners against dense solves and the textbook recurrences."""

import numpy as np
import pytest
from minimal import DenseOperator, MinimalSpace, language_model_spectrum, with_spectrum
from scipy.linalg import eigvalsh_tridiagonal

from hesscli.events import ignore
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.solvers.conjugate_gradient import ConjugateGradients
from hesscli.linalg.solvers.inverse_form import form_bounds
from hesscli.linalg.solvers.minres import Minres
from hesscli.linalg.solvers.preconditioner import LowRank, low_rank, mean_diagonal
from hesscli.linalg.tridiagonal import gauss_radau, ritz_decomposition


def right_hand_side(operator, *, seed=0):
    """Entries along the eigenvectors as long as the root of the eigenvalue: what a gradient is to a Gauss-Newton."""
    values, vectors = np.linalg.eigh(operator.matrix)
    entries = vectors @ (np.sqrt(np.abs(values)) * np.random.default_rng(seed).standard_normal(len(values)))
    return operator.space.split(entries)


def run(kind, operator, b, damping, steps):
    """Iterates, recursive residual norms and the iteration."""
    options = {"preconditioner": None} if kind is ConjugateGradients else {"null_tolerance": 0.0}
    iteration = kind.start(operator.space, b, dampings=[damping], **options)
    iterates, norms = [], []
    for _ in range(steps):
        iteration.expand(operator)
        iterates.append(operator.space.joined(iteration.solution(damping)))
        norms.append(iteration.residual_norm(damping))
        if iteration.exhausted or iteration.indefinite:
            break
    return iterates, norms, iteration


def hestenes_stiefel(matrix, b, steps):
    """The textbook's conjugate gradients."""
    x, r, p, iterates = np.zeros_like(b), b.copy(), b.copy(), []
    for _ in range(steps):
        w = matrix @ p
        step = (r @ r) / (p @ w)
        x, after = x + step * p, r - step * w
        p, r = after + (after @ after) / (r @ r) * p, after
        iterates.append(x)
    return iterates


@pytest.mark.parametrize("damping", [3.0, 0.1])
def test_iterates_are_those_of_hestenes_and_stiefel(damping):
    operator = with_spectrum(np.abs(language_model_spectrum(200)))
    b = right_hand_side(operator)
    matrix, entries = operator.matrix + damping * np.eye(200), operator.space.joined(b)
    iterates, norms, _ = run(ConjugateGradients, operator, b, damping, 12)
    for mine, theirs, norm in zip(iterates, hestenes_stiefel(matrix, entries, 12), norms, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6 * np.linalg.norm(theirs))
        assert norm == pytest.approx(np.linalg.norm(entries - matrix @ mine), rel=1e-5)


def test_minres_has_the_shortest_residual_of_the_krylov_space():
    operator = with_spectrum(language_model_spectrum(120))
    b = right_hand_side(operator)
    matrix, entries = operator.matrix + 0.5 * np.eye(120), operator.space.joined(b)
    iterates, norms, _ = run(Minres, operator, b, 0.5, 9)
    krylov = [entries / np.linalg.norm(entries)]
    for k, (x, norm) in enumerate(zip(iterates, norms, strict=True), start=1):
        basis = np.linalg.qr(np.array(krylov).T)[0]
        best = basis @ np.linalg.lstsq(matrix @ basis, entries, rcond=None)[0]
        assert norm == pytest.approx(np.linalg.norm(entries - matrix @ best), rel=1e-8)
        assert x == pytest.approx(best, abs=1e-7 * np.linalg.norm(best))
        krylov.append(matrix @ basis[:, -1] if k == 1 else matrix @ np.linalg.qr(np.array(krylov).T)[0][:, -1])


def test_a_pivot_below_zero_is_the_curvature_of_the_direction_and_no_step_is_taken():
    operator = with_spectrum(language_model_spectrum(200))
    iterates, norms, iteration = run(ConjugateGradients, operator, right_hand_side(operator), 1.0, 40)
    p = operator.space.joined(iteration.direction())
    assert iteration.indefinite
    assert 1 < len(iterates) < 10
    assert p @ operator.matrix @ p + p @ p < 0
    assert iteration.num_matvecs == len(iterates)
    assert iterates[-1] == pytest.approx(iterates[-2], abs=0)
    assert norms[-1] == norms[-2]


def test_a_singular_matrix_leaves_minres_at_the_least_squares_residual():
    eigenvalues = [0.0] * 20 + [1.0] * 20 + [-2.0] * 20
    operator = with_spectrum(eigenvalues)
    b = operator.space.random("gaussian", seed=0, index=0)
    iterates, norms, iteration = run(Minres, operator, b, 0.0, 10)
    entries = operator.space.joined(b)
    best = np.linalg.lstsq(operator.matrix, entries, rcond=1e-10)[0]
    least = np.linalg.norm(entries - operator.matrix @ best)
    assert norms[-1] == pytest.approx(least, rel=1e-8)
    assert np.linalg.norm(entries - operator.matrix @ iterates[-1]) == pytest.approx(least, rel=1e-8)
    assert np.isfinite(iterates[-1]).all()
    assert np.linalg.norm(iterates[-1]) < 10 * np.linalg.norm(entries)
    assert iteration.least_squares(0.0)


@pytest.mark.parametrize("steps", [1, 3, 8, 20, 40, 120])
@pytest.mark.parametrize("damping", [1.0, 0.05])
def test_the_quadrature_holds_the_form(steps, damping):
    for seed in range(20):
        operator = with_spectrum(np.abs(language_model_spectrum(150, seed=seed)), seed=seed)
        b = right_hand_side(operator, seed=seed)
        entries = operator.space.joined(b)
        truth = entries @ np.linalg.solve(operator.matrix + damping * np.eye(150), entries)
        _, _, iteration = run(ConjugateGradients, operator, b, damping, steps)
        found = form_bounds(*iteration.tridiagonal(), rhs_norm=operator.space.norm(b), damping=damping, floor=0.0)
        if found is not None:
            assert found[0] * (1 - 1e-9) <= truth <= found[1] * (1 + 1e-9)
        if steps <= 40:
            assert found is not None


def test_the_rules_are_the_quadratures_of_golub_and_meurant():
    operator = with_spectrum(np.abs(language_model_spectrum(150)))
    _, _, iteration = run(ConjugateGradients, operator, right_hand_side(operator), 0.5, 12)
    alphas, betas = map(np.array, iteration.tridiagonal())
    nodes, vectors = ritz_decomposition(alphas, betas[:-1])
    low, high = form_bounds(*iteration.tridiagonal(), rhs_norm=2.0, damping=0.5, floor=0.0)
    assert low == pytest.approx(4 * vectors[0] ** 2 @ (1 / (nodes + 0.5)), rel=1e-10)
    nodes, weights = gauss_radau(alphas, betas, 0.0)
    assert high == pytest.approx(4 * weights @ (1 / (nodes + 0.5)), rel=1e-10)
    assert high > 1.001 * low


def test_a_floor_above_the_spectrum_gives_no_bounds():
    operator = with_spectrum(language_model_spectrum(150))
    _, _, iteration = run(ConjugateGradients, operator, right_hand_side(operator), 60.0, 20)
    assert form_bounds(*iteration.tridiagonal(), rhs_norm=1.0, damping=10.0, floor=0.0) is None


def test_the_tridiagonal_matrix_is_the_one_of_a_lanczos_run():
    operator = with_spectrum(np.abs(language_model_spectrum(150)))
    b = right_hand_side(operator)
    state = LanczosState.start(operator.space, b, reorthogonalise=False)
    for _ in range(12):
        state.expand(operator)
    for kind in (ConjugateGradients, Minres):
        _, _, iteration = run(kind, operator, b, 0.7, 12)
        alphas, betas = iteration.tridiagonal()
        assert alphas == pytest.approx(state.alphas, rel=1e-4)
        assert betas == pytest.approx(state.betas, rel=1e-4)


@pytest.mark.parametrize("kind", [ConjugateGradients, Minres])
def test_dampings_together_are_dampings_apart(kind):
    operator = with_spectrum(np.linspace(0, 5, 100))
    b, dampings = right_hand_side(operator), [1.0, 0.1, 10.0]
    options = {"preconditioner": None} if kind is ConjugateGradients else {"null_tolerance": 0.0}
    together = kind.start(operator.space, b, dampings=dampings, **options)
    for _ in range(14):
        together.expand(operator)
    assert operator.num_matvecs == 14
    for damping in dampings:
        iterates, norms, _ = run(kind, operator, b, damping, 14)
        found = operator.space.joined(together.solution(damping))
        assert found == pytest.approx(iterates[-1], abs=1e-9 * np.linalg.norm(iterates[-1]))
        assert together.residual_norm(damping) == pytest.approx(norms[-1], rel=1e-8)


def test_a_damping_that_is_dropped_stays_as_it_is_and_the_others_go_on():
    operator = with_spectrum(np.linspace(0, 5, 100))
    b = right_hand_side(operator)
    iteration = ConjugateGradients.start(operator.space, b, dampings=[0.1, 1.0], preconditioner=None)
    for _ in range(5):
        iteration.expand(operator)
    left = iteration.solution(0.1)
    kept = operator.space.joined(left)
    iteration.drop(0.1)
    for _ in range(9):
        iteration.expand(operator)
    iterates, _, _ = run(ConjugateGradients, operator, b, 1.0, 14)
    assert operator.space.joined(left).tolist() == kept.tolist()
    assert operator.space.joined(iteration.solution(1.0)) == pytest.approx(iterates[-1], abs=1e-9)


def test_a_low_rank_preconditioner_leaves_out_pairs_that_are_not_positive():
    rng = np.random.default_rng(0)
    space = MinimalSpace([20, 1, 19])
    u, values, damping = np.linalg.qr(rng.standard_normal((40, 4)))[0], np.array([50.0, 9.0, 2.0, -3.0]), 0.2
    basis = space.basis()
    for column in u.T:
        basis.append(space.split(column))
    made = LowRank(space, values, basis)
    assert made.rank == 3
    dense = damping * np.eye(40) + (u * np.maximum(values, 0)) @ u.T
    v = rng.standard_normal(40)
    found = space.joined(made.inverse(space.split(v), damping=damping))
    assert found == pytest.approx(np.linalg.solve(dense, v), rel=1e-10)


def test_the_inverse_is_the_one_of_the_formula():
    # M^-1 = I/mu + U((Theta + mu)^-1 - 1/mu)U^T with all pairs of a matrix is the inverse of matrix + mu.
    operator = with_spectrum(np.abs(language_model_spectrum(60)))
    values, vectors = np.linalg.eigh(operator.matrix)
    basis = operator.space.basis()
    for column in vectors.T:
        basis.append(operator.space.split(column))
    b = np.random.default_rng(0).standard_normal(60)
    made = LowRank(operator.space, values, basis).inverse(operator.space.split(b), damping=0.3)
    truth = np.linalg.solve(operator.matrix + 0.3 * np.eye(60), b)
    assert operator.space.joined(made) == pytest.approx(truth, rel=1e-8, abs=1e-10)


def test_mean_diagonals_are_those_of_the_parts():
    space = MinimalSpace([30, 1, 20])
    scales = np.concatenate([np.full(30, 10.0), [3.0], np.full(20, 0.1)])
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((51, 51)) / 51
    matrix = np.sqrt(scales)[:, None] * (np.eye(51) + noise @ noise.T) * np.sqrt(scales)
    operator = DenseOperator(matrix, space)
    made = mean_diagonal(operator, probes=400, seed=0, on_event=ignore)
    assert operator.num_matvecs == 400
    expected = np.array([np.diag(matrix)[part].mean() for part in (slice(0, 30), slice(30, 31), slice(31, 51))])
    ones = space.joined(made.inverse(space.split(np.ones(51)), damping=0.5))
    assert ones[[0, 30, 50]] == pytest.approx(1 / (expected + 0.5), rel=0.05)
    assert (ones[:30] == ones[0]).all()


def test_mean_diagonals_below_zero_count_as_zero():
    operator = with_spectrum([-5.0] * 30)
    made = mean_diagonal(operator, probes=4, seed=0, on_event=ignore)
    assert operator.space.joined(made.inverse(operator.space.split(np.ones(30)), damping=4.0)) == pytest.approx(0.25)


def test_low_rank_makes_the_matrix_rounder_at_the_cost_of_its_steps():
    operator = with_spectrum(np.abs(language_model_spectrum(90)))
    made = low_rank(operator, steps=25, seed=0, on_event=ignore)
    assert operator.num_matvecs == 25
    assert made.rank > 5
    space, matrix = operator.space, operator.matrix + 0.4 * np.eye(90)
    inverse = np.array([space.joined(made.inverse(space.split(e), damping=0.4)) for e in np.eye(90)])
    values = np.linalg.eigvals(inverse @ matrix).real
    assert values.max() / values.min() < 0.1 * np.linalg.cond(matrix)
    _, _, plain = run(ConjugateGradients, operator, right_hand_side(operator), 0.4, 8)
    iteration = ConjugateGradients.start(space, right_hand_side(operator), dampings=[0.4], preconditioner=made)
    for _ in range(8):
        iteration.expand(operator)
    x = space.joined(iteration.solution(0.4))
    true = np.linalg.norm(space.joined(right_hand_side(operator)) - matrix @ x)
    assert iteration.residual_norm(0.4) == pytest.approx(true, rel=1e-3, abs=1e-9)
    assert true < 0.1 * plain.residual_norm(0.4)
    ends = eigvalsh_tridiagonal(iteration.tridiagonal()[0], iteration.tridiagonal()[1][:-1])
    assert values.min() * (1 - 1e-9) <= ends[0] <= ends[-1] <= values.max() * (1 + 1e-9)


def test_a_product_that_is_not_finite_is_refused():
    space = MinimalSpace([2, 1, 3])
    operator = DenseOperator(np.full((6, 6), np.nan), space)
    for kind in (ConjugateGradients, Minres):
        with pytest.raises(FloatingPointError):
            run(kind, operator, space.split(np.ones(6)), 0.1, 2)
    with pytest.raises(FloatingPointError):
        mean_diagonal(operator, probes=1, seed=0, on_event=ignore)
    with pytest.raises(FloatingPointError):
        low_rank(operator, steps=2, seed=0, on_event=ignore)
