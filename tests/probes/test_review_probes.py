"""Small spaces, zero matrices and budgets that run out: the figures hold, and nothing falls over."""

from dataclasses import replace

import numpy as np
import pytest
from minimal import MinimalSpace, with_spectrum

from hesscli.events import ignore
from hesscli.linalg.statistics import Estimate
from hesscli.linalg.status import Status
from hesscli.probes.blockdiag import BlockDiagonal, blockdiag
from hesscli.probes.density import density
from hesscli.probes.topk import topk
from hesscli.probes.trace import trace
from hesscli.report import schema
from hesscli.run.figures.blocks import blockdiag_metrics
from hesscli.run.figures.metrics import density_metrics, extremes, topk_metrics

SPECTRA = {
    "one": [3.0],
    "one zero": [0.0],
    "two": [3.0, -1.0],
    "three": [3.0, -1.0, 0.0],
    "eight": [4.0, 4.0, 1.0, 0.5, 0.0, 0.0, -0.2, -3.0],
    "zero": [0.0] * 30,
    "multiple": [2.0] * 20 + [-1.0] * 10,
}


def operator_of(name):
    count = len(SPECTRA[name])
    return with_spectrum(SPECTRA[name], sizes=[1] * count if count < 3 else [1, count - 1])


def largest_and_smallest(operator, **options):
    settings = {"k": 5, "which": "both", "max_steps": 100, "tolerance": 1e-3, "seed": 0, "on_event": ignore}
    return topk(operator, **{**settings, **options})


@pytest.mark.parametrize(("k", "num_high"), [(5, 3), (3, 3), (2, 2)])
def test_more_pairs_than_half_the_space_are_still_of_both_ends(k, num_high):
    operator = with_spectrum([-2.0, -1.0, 0.5, 3.0, 4.0], sizes=[2, 3])
    result = largest_and_smallest(operator, k=k)
    assert result.num_high == num_high
    metrics = topk_metrics(result, noise=1e-12)
    assert metrics["lambda_max"].value == pytest.approx(4)
    assert metrics["lambda_min"].value == pytest.approx(-2)


def test_a_single_step_is_no_smallest_eigenvalue():
    result = largest_and_smallest(operator_of("eight"), max_steps=1)
    metrics = topk_metrics(result, noise=1e-12)
    assert result.status is Status.BUDGET_SPENT
    assert "lambda_min" not in metrics
    assert metrics["max_stable_learning_rate"].value is None
    assert "not converged" in metrics["max_stable_learning_rate"].reason


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_density_of_a_small_or_zero_matrix_can_be_reported(name, deflate):
    result = density(
        operator_of(name),
        probes=4,
        steps=40,
        deflate=deflate,
        window=None,
        semi_definite=False,
        noise=0.0,
        seed=0,
        on_event=ignore,
    )
    truth = np.array(SPECTRA[name])
    schema.Band(x=result.band.x.tolist(), low=result.band.low.tolist(), high=result.band.high.tolist())
    metrics = density_metrics(result, noise=0.0)
    low, high = metrics["negative_mass"].ci
    assert low <= (truth < 0).mean() <= high
    if deflate:  # forty products hold the whole space: nothing is sampled
        assert result.num_deflated == len(truth)
        assert np.sort(result.quadratures[0].values) == pytest.approx(np.sort(truth), abs=1e-12)
        assert result.trace.ci == pytest.approx((truth.sum(),) * 2, abs=1e-11)
        assert metrics["frobenius_norm"].value == pytest.approx(np.linalg.norm(truth), abs=1e-11)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_trace_is_exact_where_the_budget_holds_the_whole_space(name):
    truth = np.array(SPECTRA[name])
    parts = [frozenset([i]) for i in range(len(operator_of(name).space.sizes))]
    result = trace(
        operator_of(name), method="krylov", diagonal=False, probes=4, steps=40, blocks=parts, seed=0, on_event=ignore
    )
    assert result.trace.value == pytest.approx(truth.sum(), abs=1e-11)
    assert result.squared_frobenius.value == pytest.approx((truth**2).sum(), abs=1e-11)
    assert sum(block.value for block in result.blocks) == pytest.approx(truth.sum(), abs=1e-11)


@pytest.mark.parametrize("deflate", [True, False])
def test_eigenvalues_that_are_zero_are_not_counted_as_negative(deflate):
    # Rounding puts them on either side of zero; an exact product claims no noise that would cover it.
    held = []
    for seed in range(12):
        truth = np.concatenate([np.zeros(270), np.random.default_rng(seed).normal(0, 1, 30)])
        operator = with_spectrum(truth, seed=seed, sizes=[100, 200])
        result = density(
            operator,
            probes=4,
            steps=40,
            deflate=deflate,
            window=None,
            semi_definite=False,
            noise=0.0,
            seed=seed,
            on_event=ignore,
        )
        low, high = result.negative_mass_bounds
        held.append(low <= (truth < 0).mean() <= high)
    assert sum(held) >= 10


def test_a_zero_matrix_has_no_block_figures_and_a_reason():
    parts = [frozenset([0]), frozenset([1])]
    result = blockdiag(operator_of("zero"), blocks=parts, probes=3, seed=0, on_event=ignore)
    metrics = blockdiag_metrics(result, noise=0.0)
    assert all(metric.value is None and metric.reason for metric in metrics.values())


def test_a_block_whose_own_product_is_zero_has_cosine_zero():
    operator = with_spectrum([1.0, -1.0], sizes=[1, 1])
    operator.matrix = np.array([[0.0, 1.0], [1.0, 0.0]])
    operator.space = MinimalSpace([1, 1])
    result = blockdiag(operator, blocks=[frozenset([0]), frozenset([1])], probes=2, seed=0, on_event=ignore)
    assert (result.relative_errors == 1).all()
    assert (result.cosines == 0).all()


def test_the_spread_over_blocks_is_covered_by_its_interval():
    # Blocks that differ and probes that hardly do: so many independent normal numbers they are not.
    rng = np.random.default_rng(0)
    means = np.concatenate([np.zeros(19), [1.0]])
    held = 0
    pooled = np.sqrt(means.var() + 0.01**2)
    for _ in range(60):
        figures = means * rng.normal(1, 0.05, (5, 1)) + rng.normal(0, 0.01, (5, 20))
        result = BlockDiagonal(figures**2, figures, np.ones((5, 20)), np.ones((5, 20, 20)), np.zeros(5))
        metrics = blockdiag_metrics(result, noise=0.0)
        metric = metrics["cosine_std"]
        held += metric.ci[0] <= pooled * np.sqrt(20 / 19) <= metric.ci[1]
        assert metric.n == {"probes": 5, "blocks": 20}
    assert held >= 50
    without = metrics["relative_error_std"]  # whose interval would not cover
    assert (without.ci, without.stderr) == (None, None)
    assert without.value == pytest.approx(result.relative_errors.std(ddof=1))
    assert without.reason.startswith("no interval")


def test_the_spectral_radius_may_be_the_other_end():
    radius = extremes((5.0, 0.1), (-4.95, 0.3), reach=0.0, precision=0.0)["spectral_radius"]
    assert radius.ci == pytest.approx((4.9, 5.25))


def test_the_effective_rank_lies_in_its_interval():
    result = density(
        operator_of("two"),
        probes=4,
        steps=40,
        deflate=False,
        window=None,
        semi_definite=False,
        noise=0.0,
        seed=0,
        on_event=ignore,
    )
    low_norm = replace(result, squared_frobenius=Estimate(6.0, 0.5, (4.4, 7.6), 4))
    rank = density_metrics(low_norm, noise=0.0)["effective_rank"]
    assert 1 <= rank.ci[0] <= rank.value <= rank.ci[1]
