"""A spectrum away from zero: what is deflated is no eigenvalue zero of the rest, and noise is no eigenvalue either."""

import numpy as np
import pytest
from minimal import DiagonalOperator
from simulation import LEAST, operator_with

from hesscli.events import ignore
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.restart import thick_restart
from hesscli.linalg.status import Status
from hesscli.probes import density as module
from hesscli.probes.density import density
from hesscli.probes.solve import solve
from hesscli.probes.topk import topk
from hesscli.run.figures.metrics import density_metrics, topk_metrics
from hesscli.run.figures.solutions import solve_metrics

# Three outliers, and a bulk whose width is a thousandth of its distance from zero: of a vector that Gram-Schmidt leaves
# with a rounding error along a deflated one, three-term recurrences make a thousand times more with every step.
SHIFTED = np.concatenate([[5.0, 4.0, 3.0], 1 + 1e-3 * np.random.default_rng(0).standard_normal(147)])


def density_of(operator, **options):
    settings = {"probes": 4, "steps": 20, "deflate": True, "window": None, "semi_definite": False, "noise": 1e-7}
    return density(operator, **{**settings, "seed": 0, "on_event": ignore, **options})


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """The band costs an eigenvalue problem a point, and is not looked at here."""
    monkeypatch.setattr(module, "band_points", lambda _quadratures: np.array([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize("window", [None, 0, 3])
def test_what_is_deflated_is_no_eigenvalue_of_the_rest(window):
    result = density_of(operator_with(SHIFTED), window=window)
    assert result.num_deflated >= 3
    assert min(q.values[0] for q in result.quadratures) == pytest.approx(SHIFTED.min(), abs=1e-3)
    metrics = density_metrics(result, noise=1e-7)
    assert metrics["lambda_min"].ci[0] <= SHIFTED.min() <= metrics["lambda_min"].ci[1]
    assert metrics["condition_number"].value == pytest.approx(5.0, rel=1e-2)


def test_what_was_found_is_not_missed_again():
    for seed in range(5):
        result = topk(
            DiagonalOperator(SHIFTED),
            k=2,
            which="both",
            max_steps=100,
            tolerance=1e-2,
            seed=seed,
            on_event=ignore,
        )
        assert result.pairs[-1].value == pytest.approx(1, abs=1e-2)
        assert result.status is Status.CONVERGED
        assert topk_metrics(result, noise=0.0)["lambda_min"].value == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("window", [None, 0])
@pytest.mark.parametrize("eigenvalues", [[1.0] * 100, [-1.0] * 50 + [2.0] * 70, [3.0] + [0.0] * 119])
def test_ends_hold_the_spectrum_under_noise_whatever_is_kept(eigenvalues, window, deflate):
    # Without a basis T has the error of every step in it, so that ends move by 2 eta sqrt(m), not by 2 eta.
    eigenvalues, held, bounds = np.array(eigenvalues), [], []
    for seed in range(15):
        operator = DiagonalOperator(eigenvalues, relative=1e-2, seed=seed)
        result = density_of(operator, window=window, deflate=deflate, noise=1e-2, seed=seed, steps=30)
        metrics = density_metrics(result, noise=1e-2)
        for name, truth in (("lambda_max", eigenvalues.max()), ("lambda_min", eigenvalues.min())):
            ci = metrics[name].ci
            held.append(ci is None or ci[0] <= truth <= ci[1])
        bounds.append(metrics["condition_number"].value)
    assert np.mean(held) >= LEAST
    if eigenvalues.all():
        assert max(b for b in bounds if b is not None) <= 1.01 * np.abs(eigenvalues).max() / np.abs(eigenvalues).min()


@pytest.mark.parametrize("solver", ["cg", "minres"])
def test_the_condition_number_of_a_noisy_solve_is_a_lower_bound(solver):
    eigenvalues = np.concatenate([[3.0], np.zeros(119)])
    for seed in range(6):
        operator = DiagonalOperator(eigenvalues, relative=1e-2, seed=seed)
        rhs = operator.space.random("gaussian", seed=seed, index=5)
        options = {"solver": solver, "preconditioner": None, "floor": 0.0, "tolerance": 1e-1, "max_steps": 60}
        (solution,) = solve(operator, rhs, dampings=[1e-2], on_event=ignore, **options)
        facts = {"solver": solver, "plain": True, "rhs_norm": operator.space.norm(rhs), "floor": 0.0}
        value = solve_metrics(solution, noise=1e-2, **facts)["condition_number"].value
        assert value is None or 1 <= value <= 301


def test_a_restart_of_a_noisy_run_whose_values_cannot_be_parted_goes_on():
    # All that the run has seen is noise about one value, and some pairs are equal to rounding.
    for seed in range(10):
        operator = DiagonalOperator(np.ones(60), relative=1e-2, seed=seed)
        start = operator.space.random("gaussian", seed=seed, index=0)
        state = LanczosState.start(operator.space, start, reorthogonalise=True)
        for _ in range(50):
            state.expand(operator)
        g, _ = state.projection()
        values = np.sort(np.linalg.eigvals(g).real)
        thick_restart(state, low=6, high=6)
        kept = np.sort(np.linalg.eigvals(state.restarted.leading).real)
        assert len(kept) in (12, 13, 14)
        assert kept[:6] == pytest.approx(values[:6], abs=1e-8)
        assert kept[-6:] == pytest.approx(values[-6:], abs=1e-8)
