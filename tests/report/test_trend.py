"""Many reports side by side: tables and figures with each figure's interval, and nothing that cannot be trusted."""

import csv
import json
import warnings
from xml.etree import ElementTree

import known_reports
import numpy as np
import pytest

from hesscli.errors import UsageError
from hesscli.recipe.schema import EstimatorSection
from hesscli.report.document import write_report
from hesscli.report.figures import trend as drawing
from hesscli.report.figures.overlay import drawable
from hesscli.report.figures.together import draw_together
from hesscli.report.schema import Metric
from hesscli.report.sweep import Axis, Cell, Manifest, read_cells, read_manifest, report_file, write_manifest
from hesscli.report.trends.points import ASKED, trend_of_reports, trend_of_sweep
from hesscli.report.trends.results import figure, results_lines, results_markdown, results_table, terminal_table

STEPS = ("step0", "step10", "step1000", "main")


def made(revision="step10", kind="hessian", value=3.0, low=2.0, high=5.0, **changes):
    report = known_reports.report("topk", metrics={"lambda_max": Metric(value=value, ci=(low, high))}, **changes)
    report.model.revision, report.operator.kind = revision, kind
    return report


def cells():
    """Two series over four revisions; one cell failed, one is not to be trusted, one is missing."""
    out = []
    for place, revision in enumerate(STEPS):
        for kind in ("hessian", "ggn"):
            value = 10.0 * (place + 1) + (kind == "ggn")
            report = made(revision, kind, value, value - 1, value + 3)
            cell = Cell(values={"model.revision": revision, "operator.kind": kind}, status="done", report_status="ok")
            out.append((cell, report))
    out[3] = (out[3][0].model_copy(update={"status": "failed", "report_status": None, "error": "no | memory"}), None)
    out[4][1].status = "untrustworthy"
    out[4] = (out[4][0].model_copy(update={"status": "failed", "report_status": "untrustworthy"}), out[4][1])
    out[7] = (out[7][0].model_copy(update={"status": "missing", "report_status": None}), None)
    return out


def trend():
    axes = [Axis(key="model.revision", values=list(STEPS)), Axis(key="operator.kind", values=["hessian", "ggn"])]
    found = cells()
    manifest = Manifest(
        name="demo", sweep_id="0" * 8, probe="topk", created="", updated="", axes=axes, cells=[c for c, _ in found]
    )
    return trend_of_sweep(manifest, found)


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_steps_are_the_axis_and_the_rest_tells_series_apart():
    found = trend()
    assert (found.x, found.steps, found.series) == ("model.revision", [0, 10, 1000, None], ["hessian", "ggn"])


def test_the_table_has_every_value_with_its_interval_and_none_that_is_not_trusted():
    table = results_table(trend())
    assert table.columns[:4] == ["model.revision", "operator.kind", "status", "run_id"]
    assert table.columns[4:7] == ["lambda_max", "lambda_max_low", "lambda_max_high"]
    assert table.rows[0] == ["step0", "hessian", "ok", "7c1f09ab", 10.0, 9.0, 13.0, None]
    assert table.rows[3] == ["step10", "ggn", "failed", None, None, None, None, "no | memory"]
    assert table.rows[4][2:7] == ["untrustworthy", "7c1f09ab", None, None, None]
    assert table.rows[7][2:4] == ["missing", None]


def test_markdown_keeps_its_columns_whatever_an_error_says():
    lines = results_markdown(trend()).splitlines()
    assert lines[2] == "| step0 | hessian | 10.0 +3 −1 | ok |"  # noqa: RUF001
    assert lines[5].endswith(r"| failed: no \| memory |")
    assert {line.replace(r"\|", "").count("|") for line in lines} == {5}


def test_json_lines_hold_whole_metrics():
    lines = [json.loads(line) for line in results_lines(trend()).splitlines()]
    assert len(lines) == 8
    assert lines[0]["metrics"]["lambda_max"]["ci"] == [9.0, 13.0]
    assert lines[4]["status"] == "untrustworthy"


def test_a_figure_without_an_interval_says_so():
    report = made()
    report.metrics["lambda_max"] = Metric(value=3.0)
    assert figure(trend_of_reports([report]).points[0], "lambda_max") == "3.00 (no interval)"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_table_is_no_wider_than_asked(width):
    from rich.console import Console

    found = [
        known_reports.density_report(metrics={name: known_reports.metric(1.23456, 0.01) for name in names})
        for names in [["lambda_max", "lambda_min", "trace", "frobenius_norm", "effective_rank"]]
    ]
    console = Console(width=width)
    with console.capture() as text:
        console.print(terminal_table(trend_of_reports(found), width))
    lines = text.get().splitlines()
    assert max(map(len, lines)) <= width
    assert ("frobenius_norm" in lines[0]) == (width > 60)


def test_the_trend_is_drawn_without_a_warning_and_its_table_lies_beside_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_together(trend(), tmp_path, ["png", "svg"]) == ["trend.png", "trend.svg", "trend.csv"]
    assert (tmp_path / "trend.png").stat().st_size > 10_000
    assert ElementTree.parse(tmp_path / "trend.svg").getroot().tag.endswith("svg")
    table = rows(tmp_path / "trend.csv")
    assert [(row["model.revision"], row["step"], row["series"], row["value"]) for row in table[:2]] == [
        ("step0", "0.0", "hessian", "10.0"),
        ("step0", "0.0", "ggn", "11.0"),
    ]
    assert (table[3]["value"], table[3]["status"], table[3]["reason"]) == ("", "failed", "no | memory")
    assert table[4]["value"] == ""


def test_each_bar_ends_where_its_interval_does_and_what_has_no_figure_is_marked():
    sheet = drawing.figure(trend())
    (axes,) = sheet.axes
    ends = sorted(tuple(segment[:, 1]) for bars in axes.collections for segment in bars.get_segments())
    assert np.allclose(ends, [(9, 13), (10, 14), (19, 23), (30, 34), (39, 43)])
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert sum(len(line.get_xdata()) for line in crosses) == 3
    assert axes.get_legend_handles_labels()[1].count("no figure") == 1
    points = [line for line in axes.lines if line.get_marker() in drawing.MARKERS]
    assert len({line.get_marker() for line in points}) == 2  # never colour alone


def test_steps_stand_at_their_places_and_what_has_no_step_stands_apart():
    (axes,) = drawing.figure(trend()).axes
    places = dict(zip([label.get_text() for label in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert list(places) == ["0", "10", "1,000", "main"]
    # a wide range is asinh(step / 10): the first step is asinh(1), the last asinh(100)
    assert places["10"] / places["1,000"] == pytest.approx(np.arcsinh(1) / np.arcsinh(100))
    assert places["main"] == pytest.approx(1)
    joined = [line for line in axes.lines if line.get_linestyle() in ("-", "--") and len(line.get_xdata()) > 1]
    assert max(max(line.get_xdata()) for line in joined) < places["1,000"] + 0.05


def test_reports_alone_give_the_same_trend_as_the_sweep(tmp_path):
    whole = [(cell, report) for cell, report in cells() if report is not None]
    alone = trend_of_reports([report for _, report in whole])
    draw_together(trend(), tmp_path / "sweep" if (tmp_path / "sweep").mkdir() is None else tmp_path, ["svg"])
    (tmp_path / "alone").mkdir()
    draw_together(alone, tmp_path / "alone", ["svg"])
    kept = ("model.revision", "step", "series", "metric", "value", "low", "high")
    first = [{k: row[k] for k in kept} for row in rows(tmp_path / "sweep/trend.csv") if row["status"] != "missing"]
    second = [{k: row[k] for k in kept} for row in rows(tmp_path / "alone/trend.csv")]
    assert [row for row in first if row["model.revision"] != "step10" or row["series"] != "ggn"] == second


def test_what_came_of_a_run_is_no_setting_that_reports_differ_in():
    one, two = made("step10"), made("step1000")
    one.estimator, two.estimator = {"deflated": 2, "steps": 9, "products": {"probes": 1}}, {"deflated": 3, "steps": 9}
    assert [axis.key for axis in trend_of_reports([one, two]).axes] == ["model.revision"]
    two.estimator["steps"] = 10
    assert [axis.key for axis in trend_of_reports([one, two]).axes] == ["model.revision", "estimator.steps"]
    settings = set(EstimatorSection.model_fields)
    assert set(ASKED) == settings - {
        "preset",
        "basis",
    }  # which leave no figure of their own


def test_densities_are_laid_over_each_other_on_one_axis(tmp_path):
    reports = []
    for revision in ("step50", "step200"):
        report = known_reports.density_report()
        report.model.revision = revision
        reports.append(report)
    bad = known_reports.density_report(status="untrustworthy")
    found = trend_of_reports([*reports, bad])
    assert [point.report.model.revision for point in drawable(found)] == ["step50", "step200"]
    names = draw_together(found, tmp_path, ["svg"])
    assert "overlay.svg" in names
    curves = {}
    for row in rows(tmp_path / "overlay.csv"):
        curves.setdefault(row["curve"], []).append(float(row["density_mean"]))
    assert list(curves) == ["step50", "step200"]
    assert curves["step50"] == curves["step200"]


def test_where_nothing_differs_or_nothing_is_there_nothing_breaks(tmp_path):
    assert draw_together(trend_of_reports([made(), made()]), tmp_path, ["svg"]) == ["trend.svg", "trend.csv"]
    assert draw_together(trend_of_reports([made(status="untrustworthy")]), tmp_path, ["svg"]) == []
    assert draw_together(trend_of_reports([made()]), tmp_path, []) == []
    with pytest.raises(UsageError, match="'pdf' is not a format"):
        draw_together(trend_of_reports([made()]), tmp_path, ["pdf"])


def test_a_manifest_reads_back_as_itself_and_finds_its_reports(tmp_path):
    manifest = Manifest(
        name="n",
        sweep_id="1",
        probe="topk",
        created="c",
        updated="u",
        axes=[Axis(key="model.revision", values=["a"])],
        cells=[Cell(values={"model.revision": "a"}, status="done", folder="m/a/topk-1"), Cell(values={})],
    )
    folder = tmp_path / "sweeps" / "n-1"
    folder.mkdir(parents=True)
    write_manifest(manifest, folder / "manifest.json")
    assert read_manifest(folder) == read_manifest(folder / "manifest.json") == manifest
    file = report_file(folder / "manifest.json", manifest.cells[0])
    assert file == tmp_path / "m/a/topk-1/report.json"
    file.parent.mkdir(parents=True)
    write_report(made(), file)
    assert [report is not None for _, report in read_cells(folder / "manifest.json", manifest)] == [True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "holds no JSON object"), ('{"schema": "hess.sweep/9"}', "'hess.sweep/9'; this hess")],
)
def test_a_manifest_that_is_none_is_refused_in_one_line(text, words, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_manifest(tmp_path)
