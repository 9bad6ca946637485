"""Lanczos, quadrature and Rayleigh-Ritz against dense truth, on a space whose parts refuse to be joined."""

import numpy as np
import pytest
from minimal import DenseOperator, DiagonalOperator, MinimalSpace, language_model_spectrum, with_spectrum

from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.rayleigh_ritz import certify
from hesscli.linalg.tridiagonal import gauss_radau, ritz_decomposition, stieltjes_bounds


def grown(operator, steps, *, reorthogonalise=True):
    space = operator.space
    state = LanczosState.start(space, space.random("gaussian", seed=1, index=0), reorthogonalise=reorthogonalise)
    for _ in range(steps):
        if state.exhausted:
            break
        state.expand(operator)
    return state


def basis_of(space, rows):
    basis = space.basis()
    for row in rows:
        basis.append(space.split(row))
    return basis


def test_lanczos_relation_holds_to_rounding():
    operator = with_spectrum(language_model_spectrum())
    state = grown(operator, 40)
    basis = np.array([operator.space.joined(state.basis.vector(i)) for i in range(40)]).T
    t = np.diag(state.alphas) + np.diag(state.betas[:-1], 1) + np.diag(state.betas[:-1], -1)
    residual = operator.matrix @ basis - basis @ t
    residual[:, -1] -= state.betas[-1] * operator.space.joined(state.current)
    assert np.abs(residual).max() < 1e-13 * 500
    assert np.abs(basis.T @ basis - np.eye(40)).max() < 1e-14 * 40
    assert state.orthogonality_loss() < 1e-14 * 40


def test_reported_residual_is_the_true_residual():
    operator = with_spectrum(language_model_spectrum())
    state = grown(operator, 25)
    ritz = state.ritz()
    for i, y in enumerate(state.basis.combine(ritz.vectors)):
        vector = operator.space.joined(y)
        true = np.linalg.norm(operator.matrix @ vector - ritz.values[i] * vector)
        assert true == pytest.approx(ritz.residual_norms[i], rel=1e-6, abs=1e-11 * 500)


def test_quadrature_is_exact_for_moments_up_to_2m_minus_1():
    operator = with_spectrum(np.linspace(-1, 2, 60))
    start = operator.space.random("gaussian", seed=1, index=0)
    v = operator.space.joined(start)
    ritz = grown(operator, 8).ritz()
    for power in range(16):
        true = v @ np.linalg.matrix_power(operator.matrix, power) @ v / (v @ v)
        assert ritz.weights @ ritz.values**power == pytest.approx(true, rel=1e-10)
    beyond = v @ np.linalg.matrix_power(operator.matrix, 18) @ v / (v @ v)
    assert abs(ritz.weights @ ritz.values**18 - beyond) > 1e-9 * abs(beyond)


def test_an_invariant_space_stops_the_run_with_a_complete_spectrum():
    operator = with_spectrum([3.0] * 20 + [1.0] * 20 + [-2.0] * 20)
    state = grown(operator, 30)
    assert state.exhausted
    assert state.num_matvecs == 3
    assert state.ritz().values == pytest.approx([-2, 1, 3], abs=1e-12)


def test_without_a_basis_three_vectors_give_the_same_moments():
    operator = with_spectrum(language_model_spectrum())
    kept, dropped = grown(operator, 60), grown(operator, 60, reorthogonalise=False)
    assert dropped.basis is None
    for power in (0, 1, 2, 3):
        values = [s.ritz().weights @ s.ritz().values ** power for s in (kept, dropped)]
        assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_product_that_is_not_finite_is_refused():
    space = MinimalSpace([3, 4])
    state = LanczosState.start(space, space.random("gaussian", seed=0, index=0), reorthogonalise=True)
    with pytest.raises(FloatingPointError):
        state.absorb(space.split([1, 2, np.nan, 4, 5, 6, 7]))


def test_certified_residuals_hold_an_eigenvalue_under_a_noisy_basis():
    eigenvalues = language_model_spectrum()
    operator = with_spectrum(eigenvalues)
    rng = np.random.default_rng(5)
    _, vectors = np.linalg.eigh(operator.matrix)
    noisy = vectors[:, [0, 1, 2, -3, -2, -1]] + 1e-3 * rng.standard_normal((len(eigenvalues), 6)) / 20
    q, _ = np.linalg.qr(noisy)
    result = certify(operator, basis_of(operator.space, q.T))
    errors = np.array([np.abs(eigenvalues - v).min() for v in result.values])
    assert (errors <= result.residual_norms).all()
    assert errors.max() > 0


@pytest.mark.parametrize("spectrum", [[50.0, 20.0, *(1 + 0.01 * np.linspace(-2, 2, 398))], language_model_spectrum()])
@pytest.mark.parametrize("steps", [8, 20])
def test_no_eigenvalue_lies_beyond_the_reach_of_the_ritz_values(spectrum, steps):
    operator = with_spectrum(spectrum)
    held = []
    for seed in range(100):
        start = operator.space.random("gaussian", seed=seed, index=0)
        state = LanczosState.start(operator.space, start, reorthogonalise=True)
        for _ in range(steps):
            state.expand(operator)
        values, reach = state.ritz().values, state.reach()
        held.append(values[0] - reach <= min(spectrum) and max(spectrum) <= values[-1] + reach)
    assert np.mean(held) >= 0.95


def test_the_reach_is_zero_once_the_space_is_invariant_and_unknown_after_one_step():
    assert grown(with_spectrum([3.0] * 30 + [1.0] * 30), 5).reach() == 0
    assert grown(with_spectrum(language_model_spectrum()), 1).reach() is None


def test_certify_sees_a_product_that_is_not_symmetric():
    operator = with_spectrum(np.linspace(1, 2, 30))
    skew = np.random.default_rng(0).standard_normal((30, 30))
    broken = DenseOperator(operator.matrix + 0.1 * (skew - skew.T), operator.space)
    assert certify(operator, basis_of(operator.space, np.eye(30)[:4])).asymmetry < 1e-14
    assert certify(broken, basis_of(operator.space, np.eye(30)[:4])).asymmetry > 0.05


def test_gauss_radau_has_the_node_and_the_moments():
    operator = with_spectrum(np.linspace(-1, 2, 60))
    v = operator.space.joined(operator.space.random("gaussian", seed=1, index=0))
    state = grown(operator, 6)
    nodes, weights = gauss_radau(np.array(state.alphas), np.array(state.betas), 0.3)
    assert np.abs(nodes - 0.3).min() < 1e-12
    for power in range(13):
        true = v @ np.linalg.matrix_power(operator.matrix, power) @ v / (v @ v)
        assert weights @ nodes**power == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("reorthogonalise", [True, False])
def test_stieltjes_bounds_hold_the_exact_weighted_distribution(reorthogonalise):
    operator = with_spectrum(language_model_spectrum(200), seed=3)
    values, vectors = np.linalg.eigh(operator.matrix)
    v = operator.space.joined(operator.space.random("gaussian", seed=1, index=0))
    weights = (vectors.T @ v) ** 2 / (v @ v)
    state = grown(operator, 30, reorthogonalise=reorthogonalise)
    points = np.concatenate([np.linspace(-60, 520, 60), np.linspace(-0.1, 0.1, 41), values[::20] + 1e-7])
    for x in points:
        low, high = stieltjes_bounds(np.array(state.alphas), np.array(state.betas), x)
        assert low <= weights[values < x].sum() + 1e-9
        assert high >= weights[values <= x].sum() - 1e-9


def test_ritz_decomposition_of_one_step_and_of_none_between_blocks():
    values, vectors = ritz_decomposition(np.array([2.5]), np.array([]))
    assert values.tolist() == [2.5]
    assert vectors.tolist() == [[1.0]]
    values, _ = ritz_decomposition(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0]))
    assert values.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("eta", [0.05, 0.5, 5.0])
def test_the_noise_meter_reads_what_was_planted_within_five_percent(eta):
    spectrum = language_model_spectrum(8000)
    assert grown(DiagonalOperator(spectrum), 30).noise() == 0
    for seed in range(3):
        assert grown(DiagonalOperator(spectrum, eta=eta, seed=seed), 45).noise() == pytest.approx(eta, rel=0.05)


def test_the_residual_of_the_recurrence_is_blind_to_noise_and_no_bar_for_it():
    # What certification is for: products of their own see the noise, and their bars hold (test_completeness).
    spectrum = language_model_spectrum(8000)
    truth, blind = np.sort(spectrum)[-5:], []
    for seed in range(3):
        ritz = grown(DiagonalOperator(spectrum, relative=1e-2, seed=seed), 40).ritz()
        blind += (np.abs(ritz.values[-5:] - truth) > ritz.residual_norms[-5:]).tolist()
        assert (ritz.residual_norms[-5:] < 1e-6 * truth).all()
    assert np.mean(blind) > 0.9


def test_the_reach_is_sharp_where_there_is_a_gap():
    # Kuczynski and Wozniakowski's bound, which knows no gap, gives 5 % of the spectrum's width here.
    assert grown(with_spectrum(language_model_spectrum(600)), 25).reach() < 1e-9 * 500
