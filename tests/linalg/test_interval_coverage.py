"""Intervals where t fails: skewed draws, simulated without a probe; shares, deviations and their ratio."""

import numpy as np
import pytest
from scipy import stats

from hesscli.linalg.statistics import (
    deviation_estimate,
    mean_estimate,
    paired_estimate,
    positive_estimate,
    share_end,
    trace_estimate,
    variation_estimate,
)

SEEDS = 600
LEAST, WIDEST = 0.93, 1.5
# One eigenvalue of the matrix beside a constant, two, some, and a matrix with no constant part: ||Bg||^2 is the floor
# and the sum of weights times squared normal numbers. Of 600 seeds a coverage has an error of 0.01.
WEIGHTS = {"one": [1.0], "two": [1.0, 1.0], "one and a few": [1.0] + [0.05] * 20, "power law": np.arange(1, 30) ** -1.2}


def squared_lengths(weights, floor, count):
    normal = np.random.default_rng(0).standard_normal((SEEDS, count, len(weights)))
    return floor + normal**2 @ np.asarray(weights, float)


def coverage(estimates, truth):
    return np.mean([e.ci[0] <= truth <= e.ci[1] for e in estimates])


@pytest.mark.parametrize("count", [2, 4, 8, 24])
@pytest.mark.parametrize("floor", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_floor_does_not_hide_the_tail_of_squared_lengths(weights, floor, count):
    draws = squared_lengths(WEIGHTS[weights], floor, count)
    truth = floor + sum(WEIGHTS[weights])
    assert coverage([positive_estimate(0.0, d, inflation=1.0) for d in draws], truth) >= LEAST - 0.02
    if floor == 10.0 and weights == "one" and count < 24:  # where Student's interval fails
        assert coverage([mean_estimate(d) for d in draws], truth) < 0.90


@pytest.mark.parametrize("count", [8, 16])
def test_draws_without_a_tail_have_an_interval_that_is_not_idly_wide(count):
    draws = 100 + np.random.default_rng(1).standard_normal((SEEDS, count))
    forms, squares = draws, np.full((SEEDS, count), 100**2 / 1000 + 0.5)
    found = [positive_estimate(0.0, d, inflation=1.0) for d in draws]
    traces = [
        trace_estimate(0.0, f, s, dimension=1000, share=1.0, inflation=1.0) for f, s in zip(forms, squares, strict=True)
    ]
    for estimates in (found, traces):
        assert coverage(estimates, 100.0) >= LEAST
        assert np.median([e.ci[1] - e.ci[0] for e in estimates]) <= WIDEST * 2 * 1.96 / count**0.5


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("count", [2, 4, 10])
def test_the_trace_of_a_constant_and_one_eigenvalue_is_covered_on_both_sides(count, sign):
    # g.Bg and ||Bg||^2 of B = 1 + 30 sign u u^T in 1000 dimensions, g of length sqrt(1000).
    x = np.random.default_rng(2).standard_normal((SEEDS, count)) ** 2
    forms, squares = 1000 + sign * 30 * x, 1000 + ((1 + sign * 30) ** 2 - 1) * x
    found = [
        trace_estimate(0.0, f, s, dimension=1000, share=1.0, inflation=1.0) for f, s in zip(forms, squares, strict=True)
    ]
    assert coverage(found, 1000 + sign * 30) >= LEAST - 0.01


def test_a_pair_of_means_of_which_one_does_not_vary_is_covered():
    tails = squared_lengths([1.0], 0.0, 4)
    assert coverage([paired_estimate(np.ones(4), d) for d in tails], 1.0) >= LEAST


def test_a_share_is_covered_by_the_ends_of_its_beta_distribution():
    # Weights that 4 probes on the sphere give to 1, 2, 5 and 60 of 120 eigenvalues; exact for a single probe.
    rng, n = np.random.default_rng(3), 120
    for probes in (1, 4):
        weights = rng.dirichlet(np.full(n, 0.5), (1500, probes)).cumsum(axis=2).mean(axis=1)
        for inside in (1, 2, 5, 60, 119):
            seen, share = weights[:, inside - 1], inside / n
            low, high = (share_end(seen, weight=float(n * probes), chance=p) for p in (0.975, 0.025))
            assert np.mean((low <= share) & (share <= high)) == pytest.approx(0.95, abs=0.025)
            ideal = 2 * 1.96 * np.sqrt(2 * share * (1 - share) / (n + 2) / probes)
            if 5 <= inside <= n - 5:
                assert np.median(high - low) == pytest.approx(ideal, rel=0.1)


def test_ends_of_a_share_are_those_of_its_beta_distribution_and_nothing_is_nothing():
    high = share_end(np.array([0.1]), weight=50.0, chance=0.025)[0]
    assert stats.beta(25 * high, 25 * (1 - high)).cdf(0.1) == pytest.approx(0.025, rel=1e-9)
    assert share_end(np.array([0.0, 1.0]), weight=1e10, chance=0.025).tolist() == [0.0, 1.0]
    assert share_end(np.array([0.5]), weight=1e10, chance=0.025)[0] == pytest.approx(0.5 + 1.96 * (0.5 / 1e10) ** 0.5)


DRAWN = {
    "normal": lambda rng, shape: rng.normal(10.0, 2.0, shape),
    "heavy": lambda rng, shape: 10 + rng.standard_t(5, shape),
    "skewed": lambda rng, shape: np.exp(0.5 * rng.normal(size=shape)),
}


@pytest.mark.parametrize("count", [4, 16])
@pytest.mark.parametrize("name", DRAWN)
def test_a_deviation_and_its_ratio_to_the_mean_are_covered(name, count):
    population = DRAWN[name](np.random.default_rng(4), 1_000_000)
    deviation = population.std()
    draws = DRAWN[name](np.random.default_rng(5), (SEEDS, count))
    found = [deviation_estimate(d) for d in draws]
    assert coverage(found, deviation) >= LEAST - 0.02
    ratios = [r for r in map(variation_estimate, draws) if r.ci is not None]
    assert coverage(ratios, deviation / population.mean()) >= LEAST
    if count == 16:
        spread = np.std([e.value for e in found])
        assert np.median([e.ci[1] - e.ci[0] for e in found]) <= WIDEST * 2 * 1.96 * spread


def test_a_mean_that_may_be_zero_bounds_no_ratio():
    assert variation_estimate(np.array([1.0, -1.0, 2.0, -1.5])).ci is None
