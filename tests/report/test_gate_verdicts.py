"""Verdicts: pass if all of the interval satisfies an assertion, fail if none of it does, else inconclusive."""

import itertools

import numpy as np
import pytest
from written_reports import figure, sampled, written

from hesscli.errors import UsageError
from hesscli.report.comparing.measured import measured
from hesscli.report.gating.check import check, demands_of, exit_code
from hesscli.report.gating.grammar import parse
from hesscli.report.gating.judge import judge, overall
from hesscli.report.schema import Gate, Metric

REPORT = measured(
    written(
        {
            "a": figure(10.0, below=1.0, above=2.0),
            "b": figure(-3.0, half=0.5),
            "near_zero": figure(0.2, half=0.5),
            "exact": figure(4.0, half=0.0),
            "none": Metric(value=None, reason="no pair converged"),
            "one_draw": Metric(value=3.0, reason="one draw has no error bar"),
        },
        blocks={"model.layers.0": {"cosine": figure(0.95, half=0.01)}},
    )
)
BASE = measured(written({"a": figure(9.0, half=0.5), "b": figure(-3.0, half=0.1)}, seed=1))


def verdict(text, new=REPORT, base=BASE, **options):
    return judge([parse(text)], new, base, **{"num_unchanged": 1, **options})[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < 12.01", "pass"),
        ("a <= 12", "pass"),
        ("a < 12", "inconclusive"),
        ("a < 9", "fail"),
        ("a <= 9", "inconclusive"),
        ("a < 8.99", "fail"),
        ("a > 8.99", "pass"),
        ("a >= 9", "pass"),
        ("a >= 12.01", "fail"),
        ("12.01 > a", "pass"),
        ("exact <= 4", "pass"),
        ("exact < 4", "fail"),
        ("exact >= 4", "pass"),
        ("exact > 4", "fail"),
        ("-a < -8.99", "pass"),
        ("a * 2 < 24.01", "pass"),
        ("a * 2 < 23.99", "inconclusive"),
        ("a / -2 < -4.49", "pass"),
        ("a - a <= 0", "pass"),
        ("a + 1 > a", "pass"),
        ("blocks.model.layers.0.cosine > 0.9", "pass"),
    ],
)
def test_the_whole_interval_decides(text, expected):
    assert verdict(text).verdict == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abs(b) < 3.51", "pass"),
        ("abs(b) < 0.36 * a", "inconclusive"),
        ("abs(b) < 0.45 * a", "pass"),
        ("abs(near_zero) >= 0", "pass"),
        ("abs(near_zero) < 0.69", "inconclusive"),
        ("abs(near_zero) < 0.71", "pass"),
        ("abs(-near_zero) < 0.69", "inconclusive"),
        ("max(a, b) < 12.01", "pass"),
        ("max(a, 11) < 12.01", "pass"),
        ("max(a, 11) > 10.99", "pass"),
        ("max(a, 11) > 11.01", "inconclusive"),
        ("min(a, 11) < 10.99", "inconclusive"),
        ("min(a, b, 5) < -2.49", "pass"),
        ("a * b < 0", "pass"),
        ("a * b < -22.49", "pass"),
        ("a * b < -22.51", "inconclusive"),
        ("a / b > -4.81", "pass"),
        ("a / b > -4.79", "inconclusive"),
        ("a / near_zero > 0", "inconclusive"),
        ("a / near_zero < 100", "inconclusive"),
        ("a / 0 > 0", "inconclusive"),
        ("1e307 * a * a > 0", "inconclusive"),
        ("1e307 * 1e307 > a", "inconclusive"),
        ("1e307 * 1e307 - 1e307 * 1e307 < a", "inconclusive"),
    ],
)
def test_what_is_no_sum_has_the_range_of_its_operands(text, expected):
    assert verdict(text).verdict == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <= base * 2", "pass"),
        ("a <= base + 3.51", "pass"),
        ("a <= base.a + 3.49", "inconclusive"),
        ("a < base - 2", "fail"),
        ("abs(b) < abs(base) * 1.3", "pass"),
        ("a > abs(base.b)", "pass"),
    ],
)
def test_base_is_the_same_figure_of_the_baseline(text, expected):
    assert verdict(text).verdict == expected


@pytest.mark.parametrize("text", ["none < 3", "one_draw < 99", "none < base.a"])
def test_a_figure_without_interval_decides_nothing(text):
    found = verdict(text)
    assert found.verdict == "inconclusive"
    assert ("no pair converged" if "none" in text else "one draw has no error bar") in found.text


def test_a_report_that_is_not_trustworthy_passes_nothing():
    new = measured(written({}, status="untrustworthy", status_text="a product is not finite"))
    for text in ("a < 1e9", "unchanged(a)", "no_such_figure < 1"):
        found = verdict(text, new=new)
        assert (found.verdict, "a product is not finite" in found.text) == ("fail", True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lambda_max < 3", "'lambda_max' is no figure of a trace report; figures are a, b, near_zero"),
        ("exat < 3", "did you mean exact?"),
        ("blocks.model.layer.0.cosine > 0", "did you mean blocks.model.layers.0.cosine?"),
        ("a < base.exact", "'exact' is no figure of the baseline"),
        ("a + b < base", "'base' stands for the one figure beside it; write base.NAME"),
        ("1 < base", "write base.NAME"),
    ],
)
def test_an_unknown_figure_is_refused_with_the_nearest(text, says):
    with pytest.raises(UsageError) as refused:
        verdict(text)
    assert says in str(refused.value)


def test_a_missing_baseline_is_refused():
    with pytest.raises(UsageError, match=r"^baseline: is missing"):
        verdict("a < base", base=None)


def test_unchanged_fails_where_a_change_is_shown_and_says_what_goes_unnoticed():
    def against(value, stderr):
        base = measured(written({"trace": sampled(100.0, 1.0)}, seed=1))
        return verdict("unchanged(trace)", new=measured(written({"trace": sampled(value, stderr)})), base=base)

    assert against(104.0, 1.0).verdict == "fail"  # 4 / sqrt(2) = 2.83 standard errors, and 2.04 at 30 degrees
    assert against(102.5, 1.0).verdict == "pass"
    assert "changes below 2.9 % go unnoticed" in against(102.5, 1.0).text
    assert "4.0 %" in against(104.0, 1.0).text


def test_unchanged_with_a_tolerance_lets_small_changes_pass():
    base = measured(written({"trace": figure(100.0, half=0.1)}, seed=1))
    new = measured(written({"trace": figure(104.0, half=0.1)}))
    for text, expected in (
        ("unchanged(trace)", "fail"),
        ("unchanged(trace, 5%)", "pass"),
        ("unchanged(trace, 3%)", "fail"),
    ):
        assert verdict(text, new=new, base=base).verdict == expected


def test_several_unchanged_share_the_false_alarm():
    base, new = (measured(written({"trace": sampled(v, 1.0)}, seed=s)) for v, s in ((100.0, 1), (103.5, 0)))
    lines = ["unchanged(trace)"] * 10

    def count(reports, lines):
        judged = [judge([d.assertion], new, base, num_unchanged=len(lines) * reports) for d in demands_of(lines, None)]
        return sum(gates[0].verdict == "fail" for gates in judged)

    assert count(1, lines[:1]) == 1  # 2.47 standard errors: beyond 2.04, within 3.03
    assert count(1, lines) == 0


def test_intervals_of_products_hold_more_often_than_they_say():
    """Arithmetic with two independent sampled figures: the interval of a ratio covers in 95 % and more."""
    from scipy import stats

    generator, alarms, draws = np.random.default_rng(0), 0, 400
    student = stats.t.ppf(0.975, 15)
    for _ in range(draws):
        rows = generator.normal((6.0, 3.0), (2.0, 1.0), (16, 2))
        means, errors = rows.mean(axis=0), rows.std(axis=0, ddof=1) / 4
        metrics = {n: sampled(m, e, quantile=student) for n, m, e in zip("xy", means, errors, strict=True)}
        report = measured(written(metrics))
        alarms += verdict("x / y < 2", new=report).verdict == "fail"
        alarms += verdict("x / y > 2", new=report).verdict == "fail"
    assert alarms / draws <= 0.05


def test_the_worst_verdict_is_that_of_all():
    words = ("pass", "inconclusive", "fail")
    for some in itertools.product(words, repeat=2):
        gates = [Gate(expr="", verdict=word) for word in some]
        assert overall(gates) == words[max(map(words.index, some))]


def test_the_exit_code_follows_the_policy():
    codes = {(v, p): exit_code(v, p) for v in ("pass", "inconclusive", "fail") for p in ("warn", "fail", "pass")}
    assert {key for key, code in codes.items() if code == 3} == {
        ("fail", "warn"),
        ("fail", "fail"),
        ("fail", "pass"),
        ("inconclusive", "fail"),
    }
    assert set(codes.values()) == {0, 3}


def test_every_report_is_judged_by_every_demand():
    found = check([("x", REPORT), ("y", BASE)], demands_of(["a < 100", "b > 0"], None), on_inconclusive="warn")
    assert [[gate.verdict for gate in one.gates] for one in found.reports] == [["pass", "fail"]] * 2
    assert (found.verdict, found.exit_code) == ("fail", 3)


def test_a_verdict_on_a_run_that_has_not_converged_says_so():
    new = REPORT.model_copy(update={"status": "not_converged", "status_text": "the budget was spent"})
    found = check([("x", REPORT), ("y", new)], demands_of(["a < 100"], None), on_inconclusive="warn")
    assert [one.notes for one in found.reports] == [[], ["status: not converged: the budget was spent"]]
