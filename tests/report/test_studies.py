"""What tables and figures of a study show beside the metrics: other data, the error of products, the kernel."""

import csv

import known_reports
import numpy as np
import pytest

from hesscli.report.axis import resolution
from hesscli.report.curves import density
from hesscli.report.figures.together import draw_together
from hesscli.report.kernel import with_kernel
from hesscli.report.schema import Eigenpair, Metric
from hesscli.report.sweep import Axis, Cell, Manifest
from hesscli.report.trends.derived import figures_of
from hesscli.report.trends.points import trend_of_reports, trend_of_sweep
from hesscli.report.trends.results import figure, results_lines, results_markdown, results_table
from hesscli.report.trends.steps import positions


def over(key, values, reports):
    cells = [
        Cell(values={key: value}, status="done", report_status=report.status)
        for value, report in zip(values, reports, strict=True)
    ]
    axes = [Axis(key=key, values=list(values))]
    manifest = Manifest(name="study", sweep_id="0" * 8, probe="x", created="", updated="", axes=axes, cells=cells)
    return trend_of_sweep(manifest, list(zip(cells, reports, strict=True)))


def pair(value, held_out=None, stderr=None):
    return Eigenpair(value=value, residual=0.0, converged=True, held_out=held_out, held_out_error=stderr)


def held_out_report(**changes):
    metrics = {"lambda_max": Metric(value=5.0, ci=(4, 6)), "lambda_min": Metric(value=-2.0, ci=(-3, -1))}
    pairs = [pair(5.0, 1.5, 0.25), pair(3.0, 9.0, 0.1), pair(-1.0, 8.0, 0.1), pair(-2.0, 0.5, 0.125)]
    return known_reports.report("topk", metrics=metrics, eigenpairs=pairs, **changes)


def test_the_ends_on_held_out_rows_stand_beside_the_ends():
    trend = over("data.limit", [50, 5], [held_out_report(), held_out_report()])
    assert trend.metrics == ["lambda_max", "lambda_max_held_out", "lambda_min", "lambda_min_held_out"]
    point = trend.points[0]
    found = point.metric("lambda_max_held_out")
    assert (found.value, found.ci) == (1.5, pytest.approx((1.5 - 0.49, 1.5 + 0.49)))
    assert point.metric("lambda_min_held_out").value == 0.5
    assert figure(point, "lambda_max_held_out") == "1.50 ± 0.49"
    assert "| 50 | 5.0 ± 1.0 | 1.50 ± 0.49 |" in results_markdown(trend)
    assert "lambda_max_held_out_low" in results_table(trend).columns
    assert '"lambda_min_held_out"' in results_lines(trend)


def test_an_end_that_is_no_figure_has_none_on_other_rows():
    report = held_out_report()
    report.metrics["lambda_max"] = Metric(value=None, reason="it has not converged")
    assert "lambda_max_held_out" not in figures_of(report)
    assert "lambda_min_held_out" in figures_of(report)
    assert over("data.limit", [1, 2], [held_out_report(status="untrustworthy")] * 2).metrics == []


def test_a_study_of_steps_shows_the_error_of_the_products_and_others_show_it_last():
    reports = []
    for error in (1e-3, 0.27):
        report = held_out_report()
        report.operator.error_estimate, report.operator.steps = error, (0.01, 0.01)
        reports.append(report)
    trend = over("operator.step", ["auto", 0.01], reports)
    assert trend.metrics[:2] == ["lambda_max", "product_error"]
    assert [figure(point, "product_error") for point in trend.points] == ["0.0010", "0.27"]
    assert over("estimator.basis_dtype", ["float32", "int8"], reports).metrics[-1] == "product_error"
    assert "product_error" not in over("operator.step", ["auto"], [held_out_report()]).metrics


def test_reports_alone_are_told_apart_by_their_fixed_steps():
    reports = [held_out_report() for _ in range(2)]
    for report, step in zip(reports, (0.1, 0.01), strict=True):
        report.operator.steps = (step, step)
    assert trend_of_reports(reports).x == "operator.step"


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["auto", 0.1, 0.01], [None, 0.1, 0.01]),
        ([1, 10, 100], [1.0, 10.0, 100.0]),
        (["auto", 0.1], [None, None]),  # one number is no axis
        ([True, 1, 2, "step5"], [None, None, None, None]),
    ],
)
def test_numbers_among_words_are_an_axis_of_their_own(names, steps):
    assert positions(names) == steps


def test_each_cell_of_a_study_of_kernels_is_drawn_with_its_own_from_one_report(tmp_path):
    report = known_reports.density_report()
    widths = ["auto", "1%", 0.5]
    trend = over("density.kernel_width", widths, [report] * 3)
    assert [point.report.spectrum.kernel_width for point in trend.points] == [None, pytest.approx(5.5, rel=1e-3), 0.5]
    assert report.spectrum.kernel_width is None
    names = draw_together(trend, tmp_path, ["svg"])
    assert set(names) == {"overlay.svg", "overlay.csv"}  # of figures that do not differ there is no trend
    with (tmp_path / "overlay.csv").open() as file:
        rows = list(csv.DictReader(file))
    for width in widths:
        drawn = [(float(row["x"]), float(row["density_mean"])) for row in rows if row["curve"] == str(width)]
        spectrum = with_kernel(report, width).spectrum
        x, heights = np.transpose(drawn)
        alone = density(spectrum, resolution(report))
        assert np.allclose(np.interp(alone.x, x, heights), alone.mean)
