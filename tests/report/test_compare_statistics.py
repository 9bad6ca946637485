"""A change and its interval: against scipy's Welch and paired tests, closed forms, and simulated coverage."""

import numpy as np
import pytest
from scipy import stats
from written_reports import figure, sampled

from hesscli.report.comparing.combination import PAIRED_INFLATION, Figure, combined
from hesscli.report.comparing.difference import difference
from hesscli.report.comparing.spread import quantile, spread
from hesscli.report.schema import Metric, Samples


def of(metric, source="new", seed=0, samples=None, **options):
    found = spread(metric, **options)
    assert not isinstance(found, str), found
    return Figure(found, source, {"seed": seed}, samples)


def from_draws(draws):
    stderr = draws.std(ddof=1) / len(draws) ** 0.5
    student = stats.t.ppf(0.975, len(draws) - 1)
    return sampled(float(draws.mean()), float(stderr), count=len(draws), quantile=student)


@pytest.mark.parametrize("sizes", [(16, 16), (8, 31), (3, 4)])
def test_independent_draws_are_compared_as_welch_does(sizes):
    generator = np.random.default_rng(1)
    base, new = generator.normal(3, 1, sizes[0]), generator.normal(5, 4, sizes[1])
    found = combined([(1.0, of(from_draws(new))), (-1.0, of(from_draws(base), "base", seed=1))], alpha=0.05)
    theirs = stats.ttest_ind(new, base, equal_var=False).confidence_interval(0.95)
    assert found.method == "welch"
    np.testing.assert_allclose((found.low, found.high), theirs, rtol=1e-9)


def test_the_same_draws_are_compared_one_by_one():
    generator = np.random.default_rng(2)
    base = generator.normal(3, 5, 12)
    new = base + generator.normal(1, 0.1, 12)
    pair = [
        of(from_draws(draws), source, samples=Samples(probe=draws.tolist()))
        for draws, source in ((new, "new"), (base, "base"))
    ]
    found = combined([(1.0, pair[0]), (-1.0, pair[1])], alpha=0.05)
    theirs = stats.ttest_rel(new, base).confidence_interval(0.95)
    half = PAIRED_INFLATION * (theirs.high - theirs.low) / 2
    assert found.method == "paired"
    np.testing.assert_allclose((found.low, found.high), (found.value - half, found.value + half), rtol=1e-9)


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": None}, {"samples": Samples(probe=[1.0, 2.0])}])
def test_draws_are_not_paired_unless_both_reports_have_the_same(change):
    draws = np.random.default_rng(3).normal(3, 5, 12)
    samples = Samples(probe=draws.tolist())
    new = of(from_draws(draws), "new", **{"samples": samples, **change})
    base = of(from_draws(draws), "base", samples=samples)
    assert combined([(1.0, new), (-1.0, base)], alpha=0.05).method != "paired"


def test_errors_of_unknown_dependence_add_in_length():
    metric = sampled(10.0, 1.0)
    one = combined([(1.0, of(metric))], alpha=0.05)
    both = combined([(1.0, of(metric)), (-1.0, of(metric, "base"))], alpha=0.05)
    assert both.method == "added"
    assert both.high - both.value == pytest.approx(2 * (one.high - one.value), rel=1e-12)


def test_one_figure_has_the_interval_of_its_report_whatever_draws_are_kept():
    metric = figure(10.0, below=2.0, above=5.0, stderr=1.5, precision=0.5)
    found = combined([(1.0, of(metric, samples=Samples(probe=[9.0, 10.0, 11.0])))], alpha=0.05)
    assert (found.low, found.high) == pytest.approx((8.0, 15.0), rel=1e-9)


def test_a_skewed_interval_turns_over_with_the_sign_and_stays_skewed():
    metric = figure(10.0, below=1.0, above=4.0, stderr=1.0)
    sure = figure(10.0, half=0.0)
    as_new = combined([(1.0, of(metric)), (-1.0, of(sure, "base", seed=1))], alpha=0.05)
    as_base = combined([(1.0, of(sure)), (-1.0, of(metric, "base", seed=1))], alpha=0.05)
    assert (as_new.low, as_new.high) == pytest.approx((-1.0, 4.0), rel=1e-9)
    assert (as_base.low, as_base.high) == pytest.approx((-4.0, 1.0), rel=1e-9)


def test_bounds_add_in_length_and_do_not_grow_with_the_level():
    new, base = figure(5.0, below=0.1, above=0.3), figure(4.0, below=0.2, above=0.4)
    for alpha in (0.05, 1e-6):
        found = combined([(1.0, of(new)), (-1.0, of(base, "base", seed=1))], alpha=alpha)
        assert (found.low, found.high, found.method) == (pytest.approx(0.5), pytest.approx(1.5), "bounds")


def test_precision_never_averages_out():
    metric = sampled(10.0, 1.0, precision=3.0)
    found = combined([(1.0, of(metric)), (-1.0, of(metric, "base", seed=1))], alpha=0.05)
    welch = quantile(30, 0.05) * 2**0.5
    assert found.high - found.value == pytest.approx(6.0 + welch, rel=1e-4)


def test_a_stricter_level_widens_what_was_sampled():
    metric = sampled(10.0, 1.0)
    halves = [combined([(1.0, of(metric))], alpha=alpha).high - 10.0 for alpha in (0.05, 0.005)]
    assert halves[1] / halves[0] == pytest.approx(stats.t.ppf(0.9975, 15) / stats.t.ppf(0.975, 15), rel=1e-4)


def test_rows_count_as_a_sample_where_the_slices_differ():
    metric = sampled(10.0, 3.0, data=4.0)
    metric.n["batches"] = 8
    found = of(metric, other_data=True).spread
    assert found.above.standard_error == pytest.approx(5.0, rel=1e-4)
    assert found.freedom == 7
    assert isinstance(spread(sampled(10.0, 3.0), other_data=True), str)


@pytest.mark.parametrize(
    "metric",
    [Metric(value=None, reason="no converged pair"), Metric(value=3.0, reason="one draw has no error bar")],
)
def test_a_figure_without_value_or_interval_gives_its_reason(metric):
    assert spread(metric) == metric.reason


def test_the_data_error_of_a_change_is_the_jackknife_of_the_difference():
    generator = np.random.default_rng(4)
    base, new = generator.normal(0, 1, (2, 16)) + 50
    leave = [np.array([np.delete(rows, i).mean() for i in range(16)]) for rows in (base, new)]
    pair = [
        of(figure(50.0, half=1.0), name, samples=Samples(data=rows.tolist()))
        for name, rows in zip(("base", "new"), leave, strict=True)
    ]
    found = combined([(1.0, pair[1]), (-1.0, pair[0])], alpha=0.05)
    assert found.data == pytest.approx((new - base).std(ddof=1) / 4, rel=1e-9)


def test_a_change_is_called_one_only_if_it_is_told_and_large():
    def verdict(base, new, least=0.0):
        pair = of(figure(base, half=0.1), "base", seed=1), of(figure(new, half=0.1))
        return difference(*pair, alpha=0.05, min_change=least).verdict

    assert [verdict(5.0, 5.1), verdict(5.0, 5.3), verdict(5.0, 4.7)] == ["~", "higher", "lower"]
    assert [verdict(5.0, 5.3, 0.1), verdict(5.0, 5.6, 0.1)] == ["~", "higher"]
    assert verdict(-5.0, -5.6, 0.1) == "lower"


@pytest.mark.parametrize("count", [4, 16])
def test_the_interval_of_a_change_of_log_normal_means_covers(count):
    """Skewed intervals, as those of squared lengths, from two reports with different seeds."""
    from hesscli.linalg.statistics import positive_estimate
    from hesscli.run.figures.metrics import sampled as metric_of

    generator, held, seeds = np.random.default_rng(5), 0, 600
    for _ in range(seeds):
        pair = [
            of(metric_of(positive_estimate(0.0, generator.chisquare(3, count), inflation=1.0), precision=0.0), name, s)
            for name, s in (("new", 0), ("base", 1))
        ]
        found = combined([(1.0, pair[0]), (-1.0, pair[1])], alpha=0.05)
        held += found.low <= 0 <= found.high
    assert held / seeds >= 0.93
