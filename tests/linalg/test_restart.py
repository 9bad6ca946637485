"""Thick restart: bounded memory, the same eigenpairs, and what the state says of itself stays right."""

import numpy as np
import pytest
from minimal import DiagonalOperator, language_model_spectrum

from hesscli.linalg.krylov.extremes import Target, run_to_ends, smallest_capacity
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.restart import expand_within, thick_restart
from hesscli.linalg.status import Status


def started(operator, seed=1):
    return LanczosState.start(
        operator.space, operator.space.random("gaussian", seed=seed, index=0), reorthogonalise=True
    )


def restarted(operator, steps, *, capacity=14, low=3, high=6, seed=1):
    state = started(operator, seed)
    for _ in range(steps):
        expand_within(state, operator, capacity=capacity, low=low, high=high)
        assert len(state.basis) <= capacity
    return state


def columns(state):
    return np.array([state.space.joined(state.basis.vector(i)) for i in range(len(state.basis))]).T


@pytest.mark.parametrize("steps", [14, 15, 25, 40])
def test_the_krylov_relation_survives_restarts(steps):
    operator = DiagonalOperator(language_model_spectrum())
    state = restarted(operator, steps)
    v, (g, last) = columns(state), state.projection()
    outside = np.outer(state.space.joined(state.current), last)
    assert np.abs(operator.eigenvalues[:, None] * v - v @ g - outside).max() < 1e-12 * 500
    assert np.abs(v.T @ v - np.eye(v.shape[1])).max() < 1e-13
    assert state.num_matvecs == operator.num_matvecs == steps


def test_residuals_after_a_restart_are_the_true_ones():
    operator = DiagonalOperator(language_model_spectrum())
    state = restarted(operator, 22)
    ritz = state.ritz()
    vectors = columns(state) @ ritz.vectors
    true = np.linalg.norm(operator.eigenvalues[:, None] * vectors - vectors * ritz.values, axis=0)
    assert ritz.residual_norms == pytest.approx(true, abs=1e-11 * 500)
    thick_restart(state, low=3, high=6)
    assert state.ritz().values == pytest.approx(np.delete(ritz.values, range(3, len(ritz.values) - 6)), abs=1e-9)
    assert len(state.basis) == 9


def test_the_polynomial_still_takes_the_first_vector_to_the_current_one():
    operator = DiagonalOperator(np.linspace(-1, 2, 60))
    state, start = restarted(operator, 20, capacity=10, low=2, high=4), started(operator).current
    polynomial, x = state.polynomial(), operator.eigenvalues
    assert len(polynomial.roots) == 20
    size = np.log(np.abs(x[:, None] - polynomial.roots)).sum(axis=1) - polynomial.log_betas
    expected = np.exp(size) * np.abs(state.space.joined(start))
    assert np.abs(state.space.joined(state.current)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_no_eigenvalue_lies_beyond_the_reach_of_a_restarted_run():
    spectrum = np.concatenate([[10, 9.8, 9.5, -6], np.random.default_rng(0).uniform(-5, 9, 400)])
    held = []
    for seed in range(100):
        state = restarted(DiagonalOperator(spectrum), 30, capacity=16, low=4, high=4, seed=seed)
        values, reach = state.ritz().values, state.reach()
        assert reach is not None
        held.append(values[0] - reach <= min(spectrum) and max(spectrum) <= values[-1] + reach)
    assert np.mean(held) >= 0.95


# Products for ten pairs at the upper end to residuals of 1e-2 and 1e-4 of the value, three more than they need.
@pytest.mark.parametrize(("capacity", "coarse", "fine"), [(600, 29, 33), (21, 31, 37), (17, 35, 43), (16, 40, 50)])
def test_a_restarted_run_costs_little_more_and_gives_the_same(capacity, coarse, fine):
    spectrum = language_model_spectrum(600)
    for tolerance, most in ((1e-2, coarse), (1e-4, fine)):
        operator = DiagonalOperator(spectrum)
        state, target = started(operator), Target(10, "largest", tolerance, operator.space.epsilon)
        status = run_to_ends(operator, state, target, max_steps=100, capacity=capacity, seed=0, on_step=lambda *_: None)
        assert status is Status.CONVERGED
        assert state.num_matvecs <= most
        assert len(state.basis) <= capacity
        top = np.sort(spectrum)[-10:]
        assert state.ritz().values[-10:] == pytest.approx(top, rel=tolerance**2 + 1e-12)


def test_both_ends_with_the_smallest_basis_that_is_allowed():
    operator = DiagonalOperator(language_model_spectrum(600))
    state, target = started(operator), Target(5, "both", 1e-6, operator.space.epsilon)
    capacity = smallest_capacity(5, "both")
    assert capacity == 22
    run_to_ends(operator, state, target, max_steps=100, capacity=capacity, seed=0, on_step=lambda *_: None)
    spectrum = np.sort(operator.eigenvalues)
    assert state.ritz().values[[0, 1, 2, 3, 4]] == pytest.approx(spectrum[:5], rel=1e-10)
    assert state.ritz().values[-5:] == pytest.approx(spectrum[-5:], rel=1e-10)


@pytest.mark.parametrize(("noise", "worst"), [({"relative": 1e-2}, 2e-3), ({"eta": 0.5}, 1e-3)])
def test_a_restart_is_safe_under_noise(noise, worst):
    spectrum = language_model_spectrum(8000)
    operator = DiagonalOperator(spectrum, **noise)
    state = restarted(operator, 40, capacity=16, low=4, high=7)
    assert state.noise() > 0.1
    assert state.ritz().values[-5:] == pytest.approx(np.sort(spectrum)[-5:], rel=worst)
    assert np.abs(columns(state).T @ columns(state) - np.eye(len(state.basis))).max() < 1e-12


def test_a_run_that_restarts_after_its_space_has_ended_goes_on():
    operator = DiagonalOperator([5.0] * 4 + [2.0] * 30 + [1.0] * 30)
    state, target = started(operator), Target(3, "largest", 1e-6, operator.space.epsilon)
    run_to_ends(operator, state, target, max_steps=60, capacity=9, seed=0, on_step=lambda *_: None)
    assert len(state.basis) <= 9
    assert state.ritz().values[-3:] == pytest.approx([5, 5, 5])
