"""Curves of a spectrum whose eigenvalues are known."""

import known_reports
import numpy as np
import pytest

from hesscli.report.axis import decades, gap_at_zero, resolution
from hesscli.report.curves import density, distribution, outliers, share_within, tail
from hesscli.report.schema import Band, Spectrum


@pytest.fixture(scope="module")
def known():
    return known_reports.spectrum(known_reports.eigenvalues())


def flat(nodes, residual=1e-9):
    """One probe with equal weights."""
    return Spectrum(
        nodes=[nodes],
        weights=[[1 / len(nodes)] * len(nodes)],
        residuals=[[residual] * len(nodes)],
        dimension=len(nodes),
    )


def integral(y, u):
    """The trapezoidal rule."""
    return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(u)))


@pytest.mark.parametrize("scale", [1e-5, 1e-4, 1e-2])
def test_the_density_integrates_to_one(known, scale):
    curve = density(known, scale)
    u = np.arcsinh(curve.x / scale)
    for row in (curve.mean, curve.low, curve.high):
        assert np.all(row >= 0)
    assert integral(curve.mean, u) == pytest.approx(1, abs=0.01)


def test_the_density_of_few_steps_integrates_to_one():
    curve = density(flat([0.5]), 0.5)
    assert integral(curve.mean, np.arcsinh(curve.x / 0.5)) == pytest.approx(1, abs=0.01)


def test_the_bulk_and_the_outlier_both_take_part_of_the_axis(known):
    scale = gap_at_zero(known, 1e-7)
    curve = density(known, scale)
    u = np.arcsinh(curve.x / scale)
    bulk = curve.mean > 0.01
    # The bulk of width 1e-3 beside 500 has a fifth of the axis, and holds all but the outliers' mass.
    assert np.ptp(u[bulk]) > 0.15 * np.ptp(u)
    assert np.abs(curve.x[bulk]).max() < 3e-3
    assert curve.x[-1] > 500
    assert curve.x[0] < -50


def test_the_density_has_its_edges_where_the_semicircle_ends(known):
    scale = gap_at_zero(known, 1e-7)
    curve = density(known, scale)
    # Far from the edge on either side: the semicircle's mass, and nothing.
    inside = np.abs(curve.x) < 1e-3 * 1.3
    u = np.arcsinh(curve.x / scale)
    mass = integral(np.where(inside, curve.mean, 0), u)
    assert mass == pytest.approx(1 - len(known_reports.OUTLIERS) / known_reports.DIMENSION, abs=0.02)


def test_the_outliers_are_the_known_ones_and_the_edge_of_the_bulk_is_none(known):
    found = outliers(known, gap_at_zero(known, 1e-7))
    assert [peak.value for peak in found] == pytest.approx(sorted(known_reports.OUTLIERS), rel=1e-6)
    for peak in found:
        assert peak.probes == len(known.nodes)
        assert peak.stderr is not None
        # Its weight is chi-squared around 1 / dimension: within five standard deviations of the mean.
        bound = 5 * np.sqrt(2 / len(known.nodes)) / known.dimension
        assert peak.weight == pytest.approx(1 / known.dimension, abs=bound)


def test_copies_of_an_eigenvalue_are_one_outlier():
    spectrum = Spectrum(
        nodes=[[0.001, 0.002, 7.0, 7.0 + 1e-9]],
        weights=[[0.5, 0.3, 0.15, 0.05]],
        residuals=[[0.01, 0.01, 1e-6, 1e-6]],
        dimension=10,
    )
    (peak,) = outliers(spectrum, 1e-3)
    assert peak.value == pytest.approx(7)
    assert peak.weight == pytest.approx(0.2)


def test_an_eigenvalue_that_few_probes_found_is_no_outlier():
    rows = [[0.01, 5.0], [0.01, 0.03], [0.01, 0.03]]
    residuals = [[0.1, 1e-6], [0.1, 0.1], [0.1, 0.1]]
    spectrum = Spectrum(nodes=rows, weights=[[0.9, 0.1]] * 3, residuals=residuals, dimension=10)
    assert outliers(spectrum, 1e-3) == []


def test_tails_count_eigenvalues_of_their_own_sign():
    spectrum = flat([-3.0, -1.0, 2.0, 5.0])
    x = np.array([0.5, 1.5, 2.0, 4.0, 6.0])
    assert tail(spectrum, x, 1).mean == pytest.approx([0.5, 0.5, 0.25, 0.25, 0])
    assert tail(spectrum, x, -1).mean == pytest.approx([0.5, 0.25, 0.25, 0, 0])
    assert distribution(spectrum, np.array([-3.0, 0.0, 5.0])).mean == pytest.approx([0.25, 0.5, 1])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([-0.2, 0.4, 90.0], 0.3),
        ([-0.2, 1e-9, 0.4, 90.0], 0.3),  # below the noise floor: zero itself
        ([0.1, 0.5, 90.0], 0.2),  # one sign: half the distance to the second
        ([0.4, 0.5, 90.0], 0.4),
        ([-0.5, -0.4], 0.4),
        ([7.0], 7.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_the_scale_is_the_gap_around_zero(nodes, expected):
    assert gap_at_zero(flat(nodes), 1e-7) == pytest.approx(expected)


def test_the_scale_is_never_below_the_noise_that_the_preflight_found():
    report = known_reports.density_report()
    assert resolution(report) < 1e-3
    report.operator.preflight.symmetry = 1e-4
    assert resolution(report) >= 1e-4 * 500 * 0.999


def test_share_within_takes_what_the_band_allows():
    band = Band(x=[-2, -1, 0, 1, 2], low=[0.0, 0.1, 0.3, 0.7, 0.9], high=[0.05, 0.2, 0.6, 0.8, 1.0])
    assert share_within(band, 1) == pytest.approx((0.5, 0.7))
    assert share_within(band, 1.5) == pytest.approx((0.5, 1.0))
    assert share_within(band, 9) == pytest.approx((0.85, 1.0))


def test_ticks_are_zero_and_signed_powers_of_ten():
    labelled, other = decades(-60, 600, 1e-4)
    assert 0 in labelled
    assert labelled == [-1, -0.01, 0, 0.01, 1, 100]
    assert not set(labelled) & set(other)
    assert all(abs(tick) >= 2e-4 for tick in other)
