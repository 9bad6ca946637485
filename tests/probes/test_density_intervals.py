"""Intervals of a density over seeds: moments, bounds of the distribution, effective dimension, the tail."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import linprog
from simulation import LEAST, SPECTRA, WIDEST, operator_with, simulate, widest

from hesscli.events import ignore
from hesscli.linalg.estimators.functional import effective_dimension, tail_exponent
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.window import WindowedLanczos
from hesscli.linalg.tridiagonal import stieltjes_bounds
from hesscli.probes import density as module
from hesscli.probes.density import density

POINTS = np.array([-20.0, -0.5, -1e-3, 0.0, 0.01, 0.2, 1.0, 1.01, 40.0])


@pytest.fixture
def few_points(monkeypatch):
    """The band costs an eigenvalue problem a point; it is asked at these alone."""
    monkeypatch.setattr(module, "band_points", lambda _quadratures: POINTS)


def measured(operator, **options):
    settings = {"probes": 8, "steps": 14, "deflate": True, "window": None, "semi_definite": False, "noise": 0.0}
    return density(operator, **{**settings, "seed": 0, "on_event": ignore, **options})


def test_the_band_is_as_narrow_as_its_sampling_error_where_steps_resolve(monkeypatch):
    rng, points = np.random.default_rng(6), np.array([-0.3, 1.0])
    eigenvalues = np.repeat([-1.0, 0.5, 2.0], [30, 180, 90]) + rng.normal(0, 1e-3, 300)
    monkeypatch.setattr(module, "band_points", lambda _quadratures: points)
    operator, shares = operator_with(eigenvalues), np.array([0.1, 0.7])
    bands = [measured(operator, probes=4, steps=9, deflate=False, seed=seed).band for seed in range(300)]
    covered = np.mean([(b.low <= shares) & (shares <= b.high) for b in bands], axis=0)
    assert (covered >= LEAST).all(), covered
    ideal = 2 * 1.96 * np.sqrt(2 * shares * (1 - shares) / (302 * 4))
    assert np.median([b.high - b.low for b in bands], axis=0) == pytest.approx(ideal, rel=0.15)


@pytest.mark.parametrize("steps", [2, 5])
def test_bounds_of_a_distribution_are_the_sharpest_that_its_moments_allow(steps):
    # All measures on a fine grid that have the same 2m + 1 moments, by linear programming; the extreme ones have few
    # points of support, which the grid misses by half its spacing.
    operator = operator_with(SPECTRA["flat"][:60], sizes=[20, 40])
    state = LanczosState.start(
        operator.space, operator.space.random("rademacher", seed=0, index=0), reorthogonalise=True
    )
    for _ in range(steps):
        state.expand(operator)
    alphas, betas = np.array(state.alphas), np.array(state.betas)
    for x in (-0.8, 0.1, 1.1):
        grid = x + np.linspace(-12, 12, 4801)
        polynomials = [np.zeros_like(grid), np.ones_like(grid)]
        for j in range(steps):
            before = betas[j - 1] if j else 0.0
            polynomials.append(((grid - alphas[j]) * polynomials[-1] - before * polynomials[-2]) / betas[j])
        # Of weights times sum p^2, which is at most 1 for any of these measures: the program is well scaled then.
        kernel = sum(p * p for p in polynomials[1:])
        rows = [p * p / kernel for p in polynomials[1:]] + [p * q / kernel for p, q in pairwise(polynomials[1:])]
        right = np.repeat([1.0, 0.0], [steps + 1, steps])
        ends = [
            sign * linprog(sign * inside / kernel, A_eq=np.array(rows), b_eq=right, method="highs").fun
            for sign, inside in ((1.0, grid < x - 1e-9), (-1.0, grid <= x + 1e-9))
        ]
        assert stieltjes_bounds(alphas, betas, x) == pytest.approx(ends, abs=0.01)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_cover_and_are_not_idly_wide(spectrum, few_points):
    eigenvalues = SPECTRA[spectrum]
    operator = operator_with(eigenvalues)
    at = (eigenvalues <= POINTS[:, None]).mean(axis=1)
    before = (eigenvalues < POINTS[:, None]).mean(axis=1)
    inside, negative, zones = [], [], []

    def run(seed):
        result = measured(operator, seed=seed)
        inside.append((result.band.low <= at + 1e-9) & (before - 1e-9 <= result.band.high))
        low, high = result.negative_mass_bounds
        negative.append(low <= (eigenvalues < 0).mean() <= high)
        zone = result.unresolved
        share = ((eigenvalues >= zone.low) & (eigenvalues <= zone.high)).mean()
        zones.append(zone.mass_low - 1e-9 <= share <= zone.mass_high + 1e-9)
        return [result.trace, result.squared_frobenius]

    covered, widths, _ = simulate(run, np.array([eigenvalues.sum(), (eigenvalues**2).sum()]), seeds=200)
    assert (covered >= LEAST).all(), covered
    assert (widths <= widest(spectrum)).all(), widths
    assert (np.mean(inside, axis=0) >= LEAST).all(), np.mean(inside, axis=0)
    assert np.mean(negative) >= LEAST
    assert np.mean(zones) >= LEAST


def test_the_norm_is_covered_where_copies_of_an_eigenvalue_are_left_to_sample(few_points):
    # One Krylov run sees little more than one of three; squares of what is left have a tail that a constant part hides.
    copies = [5, 5 * (1 - 1e-4), 5 * (1 - 3e-4), 4]
    eigenvalues = np.concatenate([copies, np.random.default_rng(7).uniform(-1, 1, 150)])
    operator = operator_with(eigenvalues)

    def run(seed):
        return [measured(operator, seed=seed).squared_frobenius]

    covered, _, _ = simulate(run, np.array([(eigenvalues**2).sum()]), seeds=200)
    assert covered[0] >= LEAST


def test_the_effective_dimension_of_a_semi_definite_matrix_is_covered(few_points):
    eigenvalues = np.concatenate([100.0 * np.arange(1, 151) ** -1.5, np.zeros(150)])
    operator = operator_with(eigenvalues)
    damping = 0.1
    truth = (eigenvalues / (eigenvalues + damping)).sum()

    def run(seed):
        return [measured(operator, steps=20, semi_definite=True, seed=seed).effective_dimension]

    covered, widths, _ = simulate(run, np.array([truth]), seeds=200)
    assert covered[0] >= LEAST
    # The bracket is not sampling error, but at twenty steps it is small beside it.
    assert widths[0] <= WIDEST


def test_the_bracket_of_a_probe_holds_the_form_exactly():
    eigenvalues = np.concatenate([np.geomspace(1e-4, 50, 80), np.zeros(20)])
    operator = operator_with(eigenvalues)
    values, vectors = np.linalg.eigh(operator.matrix)
    for steps in (2, 4, 8, 16, 30):
        for seed in range(10):
            start = operator.space.random("rademacher", seed=seed, index=0)
            state = LanczosState.start(operator.space, start, reorthogonalise=True)
            for _ in range(steps):
                state.expand(operator)
            matrices = [(np.array(state.alphas), np.array(state.betas))]
            found = effective_dimension(matrices, np.zeros(0), damping=0.05, below=1e-12, dimension=100)
            exact = ((vectors.T @ start) ** 2 * values / (values + 0.05)).sum()
            assert found.bracket[0] - 1e-9 <= exact <= found.bracket[1] + 1e-9
    assert found.bracket[1] - found.bracket[0] < 0.05 * exact


@pytest.mark.parametrize(("exponent", "count"), [(0.5, 7), (1.2, 7), (1.2, 20), (2.0, 40)])
def test_the_tail_exponent_of_a_power_law_is_covered(exponent, count):
    exact = tail_exponent(300 * np.arange(1, count + 1) ** -exponent)
    assert exact.ci[0] <= exponent <= exact.ci[1]
    assert exact.value == pytest.approx(exponent, rel=0.2)
    # Largest of a sample whose sizes have a Pareto tail: then lambda_i falls like i^-exponent.
    rng, held, values, widths = np.random.default_rng(0), [], [], []
    for _ in range(1000):
        found = tail_exponent(np.sort(rng.uniform(size=2000) ** -exponent)[-count:])
        held.append(found.ci[0] <= exponent <= found.ci[1])
        values.append(found.value)
        widths.append(found.ci[1] - found.ci[0])
    assert np.mean(held) >= LEAST
    assert np.median(widths) <= WIDEST * 2 * 1.96 * np.std(values)


def test_a_tail_of_few_eigenvalues_has_no_exponent():
    assert tail_exponent(np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])) is None
    assert tail_exponent(np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, -0.1])) is None
    assert measured(operator_with(SPECTRA["flat"]), steps=10).tail_exponent is None
    found = measured(operator_with(SPECTRA["language model"]), steps=40).tail_exponent
    # Twenty outliers follow the law; the bulk, of which some is found too, does not.
    assert found.count == 19
    assert found.ci[0] <= 1.2 <= found.ci[1]


def test_an_outlier_that_the_probes_still_see_ends_the_tail():
    from hesscli.linalg.krylov.deflation import Outliers
    from hesscli.linalg.krylov.lanczos import Ritz

    outliers = Outliers(np.arange(1.0, 11.0), np.zeros(10), operator_with(np.ones(5)).space.basis(), 0.0, 0.0, 0.0, 0.0)
    rest = Ritz(np.array([0.0, 4.4]), np.array([0.1, 0.2]), np.ones(2) / 2, np.eye(2))
    assert module._largest_beyond(outliers, [rest]).tolist() == [5, 6, 7, 8, 9, 10]


def test_a_window_holds_so_many_vectors_and_one_of_all_is_the_whole_basis():
    operator = operator_with(SPECTRA["language model"])
    start = operator.space.random("rademacher", seed=0, index=0)
    whole = LanczosState.start(operator.space, start, reorthogonalise=True)
    windowed = WindowedLanczos.start(operator.space, start, reorthogonalise=False)
    windowed.window = 50
    short = WindowedLanczos.start(operator.space, start, reorthogonalise=False)
    short.window = 3
    for _ in range(30):
        for state in (whole, windowed, short):
            state.expand(operator)
        assert len(short.recent) <= 3
        assert max(abs(short.current @ u) for u in short.recent) < 1e-13
    assert windowed.ritz().values == pytest.approx(whole.ritz().values, rel=1e-9)
    assert len(np.unique(short.ritz().values.round(6))) < 30  # copies of what left the window
    assert np.abs(windowed.ritz().values - short.ritz().values).max() > 1


def test_the_condition_number_is_a_lower_bound():
    from hesscli.run.figures.metrics import density_metrics

    eigenvalues = np.concatenate([np.geomspace(0.5, 200, 60), [-3.0]])
    for steps in (5, 10, 30, 61):
        metrics = density_metrics(measured(operator_with(eigenvalues, sizes=[30, 31]), steps=steps), noise=0.0)
        bound = metrics["condition_number"].value
        assert bound is None or bound <= 400 * (1 + 1e-9)
    assert bound == pytest.approx(400, rel=1e-6)


def test_the_unresolved_zone_of_a_resolved_spectrum_is_its_gap():
    result = measured(operator_with([-1.0] * 40 + [2.0] * 60, sizes=[50, 50]), probes=2, deflate=False, steps=10)
    zone = result.unresolved
    assert zone.low < 0 < zone.high
    assert (zone.mass_low, zone.mass_high) == pytest.approx((0, 0.3), abs=0.3)
