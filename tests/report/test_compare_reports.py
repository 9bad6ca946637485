"""Which reports may be compared, what a comparison says, and the baseline file."""

import io
import json

import pytest
from rich.console import Console
from written_reports import figure, on_disk, sampled, written

from hesscli.errors import UsageError
from hesscli.report.comparing.comparison import compare
from hesscli.report.comparing.measured import measured, read_measured, write_baseline
from hesscli.report.comparing.table import render_comparison
from hesscli.report.schema import Metric

FIGURES = {"trace": figure(10.0, half=0.1)}


def against(base, new, *, across=(), blocks=False, min_change=0.0):
    return compare(("b", measured(base)), [("n", measured(new))], min_change=min_change, across=across, blocks=blocks)


def row(found, name):
    return next(row for row in found.news[0].rows if row.metric == name)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("data__fingerprint", "sha256:11", "data.fingerprint"),
        ("operator__kind", "ggn", "operator.kind"),
        ("operator__params", ["*.bias"], "operator.params"),
        ("operator__exclude", ["lm_head*"], "operator.exclude"),
        ("model__dtype", "bfloat16", "model.dtype"),
        ("model__task", "masked-lm", "model.task"),
        ("loss__normalisation", "sum", "loss.normalisation"),
    ],
)
def test_reports_of_other_things_are_refused_with_the_setting_and_both_values(path, value, field):
    base, new = written(FIGURES), written(FIGURES, **{path: value})
    with pytest.raises(UsageError) as refused:
        against(base, new)
    old = measured(base).settings[field]
    for word in (field, *([old] if isinstance(old, str) else old), *([value] if isinstance(value, str) else value)):
        assert word in str(refused.value)
    assert against(base, new, across=[field]).news[0].notes[0].startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model__id", "org/other"),
        ("model__revision", "step1"),
        ("model__num_parameters", 7),
        ("model__num_selected", 7),
        ("operator__product", "double-backward"),
        ("seconds", 9.0),
    ],
)
def test_what_is_compared_or_only_spent_may_differ(path, value):
    found = against(written(FIGURES), written(FIGURES, **{path: value}))
    assert bool(found.news[0].notes) == (path == "operator__product")


@pytest.mark.parametrize(("command", "key"), [("blockdiag", "by"), ("solve", "damping"), ("solve", "rhs")])
def test_settings_that_say_what_is_measured_must_agree(command, key):
    base, new = (written(FIGURES, command=command, estimator={key: value}) for value in ("layer", "module"))
    with pytest.raises(UsageError, match=f"estimator.{key}: not comparable: layer against module"):
        against(base, new)


def test_fishers_with_other_labels_are_refused():
    base, new = (written(FIGURES, seed=seed, operator__kind="fisher") for seed in (0, 1))
    with pytest.raises(UsageError, match=r"estimator.seed: not comparable: 0 against 1"):
        against(base, new)


def test_solves_for_other_random_vectors_are_refused():
    base, new = (written(FIGURES, command="solve", seed=seed, estimator={"rhs": "random"}) for seed in (0, 1))
    with pytest.raises(UsageError, match=r"estimator.seed: not comparable: 0 against 1"):
        against(base, new)


def test_probes_that_share_a_figure_are_compared_in_it():
    base = written({"lambda_max": figure(3.0, half=0.1), "trace": figure(1.0, half=0.1)}, command="density")
    new = written({"lambda_max": figure(4.0, half=0.1), "k": figure(1.0, half=0.1)}, command="topk")
    found = against(base, new)
    assert (row(found, "lambda_max").verdict, row(found, "trace").verdict) == ("higher", None)
    assert row(found, "trace").reason == "the new report has no such figure"
    with pytest.raises(UsageError, match="have no figure in common"):
        against(written({"trace": figure(1.0)}), new)


def test_null_figures_are_said_and_not_compared():
    new = written({"trace": Metric(value=None, reason="the product is zero there")})
    found = row(against(written(FIGURES), new), "trace")
    assert (found.verdict, found.change, found.reason) == (None, None, "new: the product is zero there")


def test_blocks_are_compared_if_asked_for_and_cut_alike():
    base = written(FIGURES, blocks={"h.0": {"trace": figure(1.0, half=0.1)}}, estimator={"by": "layer"})
    new = written(FIGURES, blocks={"h.0": {"trace": figure(2.0, half=0.1)}}, estimator={"by": "layer"})
    assert len(against(base, new).news[0].rows) == 1
    assert row(against(base, new, blocks=True), "blocks.h.0.trace").verdict == "higher"
    other = written(FIGURES, blocks={"h.0": {"trace": figure(2.0, half=0.1)}}, estimator={"by": "module"})
    assert "estimator.by is layer against module" in row(against(base, other, blocks=True), "blocks.h.0.trace").reason


def test_effective_dimensions_at_other_dampings_are_not_compared():
    base, new = (
        written({"effective_dimension": figure(5.0, half=0.1)}, estimator={"effective_dimension_damping": damping})
        for damping in (0.1, 0.2)
    )
    assert "is 0.1 against 0.2" in row(against(base, new), "effective_dimension").reason


def test_an_untrustworthy_base_is_refused():
    with pytest.raises(UsageError, match="the base is not trustworthy"):
        against(written({}, status="untrustworthy"), written(FIGURES))


def test_other_slices_count_the_rows_as_a_sample():
    base, new = (
        written({"trace": sampled(value, 0.1, data=data)}, data__fingerprint=f"sha256:{value}")
        for value, data in ((10.0, 2.0), (13.0, 2.0))
    )
    found = row(against(base, new, across=["data.fingerprint"]), "trace")
    assert found.verdict == "~"
    assert found.ci[1] - found.change > 2 * 8**0.5


def test_spreads_over_the_same_rows_are_never_independent():
    base, new = (
        written({"spread": figure(value, half=2.0, stderr=1.0, count=8, data=1.0)}, seed=seed)
        for seed, value in ((0, 5.0), (1, 8.5))
    )
    for report in (base, new):
        report.metrics["spread"].n = {"batches": 8}
    found = row(against(base, new), "spread")
    assert (found.method, found.verdict) == ("added", "~")
    assert row(against(base, new, across=["data.fingerprint"]), "spread").method == "welch"


def rendered(found, width=80):
    stream = io.StringIO()
    render_comparison(found, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_fits_and_names_every_figure_whole():
    base = written({"max_stable_learning_rate": figure(0.0228413, half=1e-8), "lambda_min": figure(-11.99, half=1e-6)})
    new = written({"max_stable_learning_rate": figure(0.1910093, half=1e-8), "lambda_min": figure(-6.3, half=1e-6)})
    text = rendered(against(base, new))
    assert max(map(len, text.splitlines())) <= 80
    line = next(line for line in text.splitlines() if line.startswith("max_stable_learning_rate"))
    assert line.split() == [
        "max_stable_learning_rate",
        "0.022841",
        "0.19101",
        "+0.16816800",
        "2.0e-08",
        "+740",
        "higher",
    ]
    assert "\N{MINUS SIGN}11.990 \N{MINUS SIGN}6.3000" in " ".join(text.split())


def test_a_skewed_interval_is_printed_with_both_arms():
    base = written({"trace": figure(10.0, half=0.0)}, seed=1)
    text = rendered(against(base, written({"trace": figure(11.0, below=1.0, above=4.0)})))
    assert "+4 \N{MINUS SIGN}1" in text


def test_a_baseline_holds_what_its_report_holds(tmp_path):
    report = written(
        {"trace": sampled(10.0, 1.0, data=3.0), "none": Metric(value=None, reason="no pair converged")},
        blocks={"h.0": {"trace": figure(1.0, half=0.5)}},
        samples={"trace": {"probe": [9.0, 11.0, 10.0]}},
    )
    on_disk(tmp_path / "run" / "report.json", report.metrics)
    write_baseline(measured(report), tmp_path / "baseline.json")
    assert read_measured(tmp_path / "baseline.json", field="baseline") == measured(report)
    assert read_measured(tmp_path / "run", field="baseline").metrics == report.metrics
    text = (tmp_path / "baseline.json").read_text()
    assert text.count("null") == 1  # the value that there is not
    assert "created" not in text
    assert "seconds" not in text


def test_a_baseline_of_the_same_figures_is_the_same_file(tmp_path):
    for name in ("one", "two"):
        write_baseline(measured(written(FIGURES, seconds=len(name))), tmp_path / name)
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a baseline"),
        (json.dumps({"schema": "hess.baseline/9"}), "schema 'hess.baseline/9'; this hess reads 'hess.baseline/1'"),
        (json.dumps({"schema": "hess.baseline/1"}), "field required"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(UsageError) as refused:
        read_measured(tmp_path / "b.json", field="baseline")
    assert says in str(refused.value)
    assert str(refused.value).startswith("baseline")
    assert "\n" not in str(refused.value)
