"""Exports: every figure with its error, in forms that their own readers read back."""

import csv
import io
import json
from xml.etree import ElementTree

import known_reports
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hesscli.cli import exports
from hesscli.errors import UsageError
from hesscli.report.exporting import TEXTS
from hesscli.report.exporting.trackers import TRACKERS
from hesscli.report.schema import Gate

EVERY = [
    known_reports.density_report(),
    known_reports.topk_report(),
    known_reports.blockdiag_report(4),
    known_reports.trace_report(3),
]


def named(model_id, **changes):
    report = known_reports.trace_report(2, **changes)
    report.model.id = model_id
    return report


def long_form(reports):
    return list(csv.DictReader(io.StringIO(TEXTS["csv"](reports))))


def samples(reports):
    families = list(text_string_to_metric_families(TEXTS["prom"](reports)))
    return {(s.name, *sorted(s.labels.items())): s for family in families for s in family.samples}


def test_a_csv_row_holds_every_digit_of_a_figure_and_of_each_part_of_its_error():
    report = EVERY[0]
    rows = {row["metric"]: row for row in long_form([report]) if row["scope"] == "model"}
    assert list(rows) == list(report.metrics)
    for name, metric in report.metrics.items():
        row = rows[name]
        expected = [metric.value, metric.stderr, *(metric.ci or (None, None)), *metric.errors.model_dump().values()]
        keys = ["value", "stderr", "ci_low", "ci_high", *(f"error_{part}" for part in metric.errors.model_dump())]
        assert [float(row[key]) if row[key] else None for key in keys] == expected
        assert row["reason"] == (metric.reason or "")
    assert rows["lambda_max"]["n"] == "probes=6"
    assert {row["model"] for row in rows.values()} == {"org/model-70m"}


def test_json_lines_say_what_the_csv_says():
    text = TEXTS["jsonl"](EVERY)
    lines = [json.loads(line) for line in text.splitlines()]
    table = long_form(EVERY)
    assert len(lines) == len(table) > 30
    for line, row in zip(lines, table, strict=True):
        assert list(line) == list(row)
        assert (line["scope"], line["item"] or "", line["metric"]) == (row["scope"], row["item"], row["metric"])
        assert (line["value"] is None) == (row["value"] == "")
        assert line["value"] is None or line["value"] == float(row["value"])
        assert isinstance(line["n"], dict)


def test_the_long_form_has_blocks_and_eigenpairs_and_says_which_has_not_converged():
    rows = long_form([EVERY[1], EVERY[2]])
    pairs = [row for row in rows if row["scope"] == "eigenpair"]
    assert [row["item"] for row in pairs] == ["1", "2", "3", "4", "5", "6", "-2", "-1"]
    assert [float(row["value"]) for row in pairs] == sorted(known_reports.OUTLIERS, reverse=True)
    assert [bool(row["reason"]) for row in pairs] == [False] * 5 + [True] + [False] * 2
    assert {float(row["error_numeric"]) for row in pairs} == {1e-4, 0.8}
    assert not any(row["ci_low"] for row in pairs)
    assert {row["item"] for row in rows if row["scope"] == "block"} == {b.name for b in EVERY[2].blocks}


def test_markdown_is_a_table_in_which_no_name_is_markup():
    report = named("org/a|b_<img src=x>`*", status="not_converged", status_text="more probes are needed")
    lines = TEXTS["md"]([report]).splitlines()
    assert len(lines) == 2 + len(report.metrics)
    for line in lines[2:]:
        cells = line.replace("\\|", "").split("|")
        assert len(cells) == 8
        assert "not converged" in cells[2]
    assert "<img" not in "".join(lines)
    assert "org/a\\|b\\_&lt;img src=x&gt;\\`\\*" in lines[2]
    assert "910 | 60 |" in lines[2]


def test_markdown_says_why_a_run_has_no_figures():
    report = known_reports.trace_report(metrics={}, status="untrustworthy", status_text="not symmetric")
    assert "not symmetric" in TEXTS["md"]([report])


def test_junit_has_a_case_for_the_status_and_for_each_gate():
    gates = [
        Gate(expr="trace < 1000", verdict="pass"),
        Gate(expr='trace < "5" & <6>', verdict="fail", text="trace is 910\x00 ± 60"),
        Gate(expr="trace < 900", verdict="inconclusive", text="the interval holds 900"),
    ]
    broken = known_reports.report("density", status="untrustworthy", status_text="not finite")
    root = ElementTree.fromstring(TEXTS["junit"]([known_reports.trace_report(gates=gates, verdict="fail"), broken]))
    first, second = root.findall("testsuite")
    outcome = {case.get("name"): [child.tag for child in case if child.tag != "system-out"] for case in first}
    assert outcome == {
        "status": [],
        "trace < 1000": [],
        'trace < "5" & <6>': ["failure"],
        "trace < 900": ["skipped"],
    }
    assert second.find("testcase/failure").get("message") == "NOT TRUSTWORTHY: not finite"
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("5", "2", "1")


def test_prometheus_reads_back_each_value_with_its_interval():
    found = samples(EVERY)
    for report in EVERY:
        labels = {"model": "org/model-70m", "revision": "step3000", "operator": "hessian", "dataset": "demo"}
        place = tuple(sorted({**labels, "probe": report.command}.items()))
        for name, metric in report.metrics.items():
            ends = metric.ci or (None, None)
            given_ = {"": metric.value, "_ci_low": ends[0], "_ci_high": ends[1], "_stderr": metric.stderr}
            for ending, value in given_.items():
                sample = found.get((f"hess_{name}{ending}", *place))
                assert (None if sample is None else sample.value) == value
        assert found[("hess_run_ok", *place)].value == 1
    assert all(sample.timestamp is None for sample in found.values())


def test_prometheus_has_one_help_and_type_before_all_samples_of_a_name():
    lines = TEXTS["prom"](EVERY).splitlines()
    heads = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(heads) == len(set(heads))
    current = ""
    for line in lines:
        if line.startswith("# HELP"):
            current = line.split()[2]
        elif line.startswith("# TYPE"):
            assert line == f"# TYPE {current} gauge"
        else:
            assert line.startswith(f"{current}{{")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_prometheus_labels_come_back_as_they_were(text):
    report = named(text or "x", gates=[Gate(expr=f'a"\\\n{text}', verdict="fail")], verdict="fail")
    found = [s for s in samples([report]).values() if s.name == "hess_gate"]
    assert [(s.labels["model"], s.labels["expr"], s.value) for s in found] == [(text or "x", f'a"\\\n{text}', 0)]


def test_a_run_that_is_not_ok_says_so_to_prometheus():
    report = named("m", status="not_converged", status_text="raise --probes")
    assert {s.value for s in samples([report]).values() if s.name == "hess_run_ok"} == {0}


def test_two_reports_of_the_same_series_are_refused():
    other = known_reports.trace_report(2, run_id="other")
    with pytest.raises(UsageError, match=r"7c1f09ab and other give the same series"):
        TEXTS["prom"]([known_reports.trace_report(2), other])


def test_the_formats_that_the_help_names_are_those_that_there_are():
    assert tuple(TEXTS) == exports._TEXTS
    assert tuple(TRACKERS) == exports._TRACKERS
