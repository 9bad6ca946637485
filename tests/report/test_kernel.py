"""A density with Gaussians of one width: what they are, what they are not allowed to change, and what says so."""

import known_reports
import numpy as np
import pytest
from scipy.stats import norm

from hesscli.report.curves import density
from hesscli.report.document import read_report, write_report
from hesscli.report.figures import draw
from hesscli.report.kernel import kernel_sigma, kernel_words, with_kernel
from hesscli.report.schema import Spectrum
from hesscli.report.sketch import sketch

# A bulk at zero, an outlier of each sign, and two probes that differ.
NODES = [[-5.0, -0.01, 0.02, 95.0], [-5.0, 0.0, 0.03, 95.0]]
WEIGHTS = [[0.1, 0.4, 0.4, 0.1], [0.05, 0.5, 0.4, 0.05]]


def spectrum(sigma=None):
    residuals = [[1e-6] * 4] * 2
    return Spectrum(nodes=NODES, weights=WEIGHTS, residuals=residuals, dimension=1000, kernel_width=sigma)


@pytest.mark.parametrize("sigma", [1e-5, 1e-3, 0.3, 5.0])
def test_it_is_the_sum_of_normal_densities_on_the_linear_axis(sigma):
    scale = 0.01
    curve = density(spectrum(sigma), scale)
    rows = []
    for nodes, weights in zip(NODES, WEIGHTS, strict=True):
        per_lambda = sum(w * norm.pdf(curve.x, node, sigma) for node, w in zip(nodes, weights, strict=True))
        rows.append(per_lambda * np.hypot(curve.x, scale))  # per unit of asinh(x / scale)
    top = np.max(rows)
    assert np.allclose(curve.mean, np.mean(rows, axis=0), atol=1e-9 * top)
    assert np.allclose(curve.low, np.min(rows, axis=0), atol=1e-9 * top)
    assert np.allclose(curve.high, np.max(rows, axis=0), atol=1e-9 * top)


@pytest.mark.parametrize("sigma", [1e-6, 1e-2, 20.0])
def test_no_gaussian_falls_between_the_points_that_are_drawn(sigma):
    curve = density(spectrum(sigma), 0.01)
    u = np.arcsinh(curve.x / 0.01)
    assert np.all(np.diff(u) > 0)
    assert np.trapezoid(curve.mean, u) == pytest.approx(1, abs=0.01)


def test_a_share_is_of_the_range_and_auto_is_no_width():
    assert kernel_sigma(spectrum(), "1%") == pytest.approx(1.0)
    assert kernel_sigma(spectrum(), "0.5%") == pytest.approx(0.5)
    assert kernel_sigma(spectrum(), 0.07) == 0.07
    assert kernel_sigma(spectrum(), "auto") is None
    one = Spectrum(nodes=[[2.0]], weights=[[1.0]], residuals=[[0.0]], dimension=1)
    assert kernel_sigma(one, "1%") is None


def test_a_width_changes_the_picture_and_no_figure_and_is_kept_with_it(tmp_path):
    report = known_reports.density_report()
    wide = with_kernel(report, "1%")
    assert wide.metrics == report.metrics
    write_report(wide, tmp_path / "report.json")
    again = read_report(tmp_path / "report.json")
    assert again.spectrum.kernel_width == pytest.approx(0.01 * (500 + 50), rel=1e-6)
    drawn = {}
    for name, one in (("auto", report), ("wide", wide), ("again", again)):
        draw(one, tmp_path / name, ["svg"])
        drawn[name] = [(tmp_path / name / file).read_bytes() for file in ("density.csv", "density.svg")]
        bounds = (tmp_path / name / "density_band.csv").read_bytes()
        assert bounds == (tmp_path / "auto" / "density_band.csv").read_bytes()
    assert drawn["wide"] == drawn["again"]
    assert drawn["wide"][0] != drawn["auto"][0]
    assert sketch(wide, 80) != sketch(report, 80)


def test_the_picture_says_its_kernel():
    assert kernel_words(spectrum(0.5)) == "kernel \N{GREEK SMALL LETTER SIGMA} = 0.50, 0.50 % of the range"
    assert kernel_words(spectrum()) == ""
