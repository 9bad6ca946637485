"""The report in the terminal: figures with their errors, honest words, never wider than the terminal."""

import io
import re

import known_reports
import pytest
from rich.console import Console

from hesscli.report.figures import stems
from hesscli.report.schema import Eigenpair, Errors, Metric
from hesscli.report.sentence import sentence
from hesscli.report.sketch import sketch
from hesscli.report.terminal import render

MAKERS = [
    known_reports.density_report,
    known_reports.topk_report,
    known_reports.blockdiag_report,
    known_reports.trace_report,
]


def printed(report, width=80, **options):
    stream = io.StringIO()
    render(report, Console(file=stream, width=width, **options))
    return stream.getvalue()


def words(text):
    """The text with every run of spaces and line ends as one space."""
    return " ".join(text.split())


def row(text, name):
    return next(line for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_cut(make, width):
    text = printed(make(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name in make().metrics:
        assert name in text


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_is_coloured_where_colour_is_not_wanted(make, monkeypatch):
    assert "\x1b" not in printed(make())
    monkeypatch.setenv("NO_COLOR", "1")
    coloured = re.findall(r"\x1b\[[0-9;]*m", printed(make(), force_terminal=True))
    # Bold and dim may stay under NO_COLOR; a colour (30 to 49, 90 to 107) may not.
    assert not [code for code in coloured if re.search(r"\b(3\d|4\d|9\d|10[0-7])\b", code)]


def test_a_value_and_its_error_stay_on_one_line():
    for width in range(60, 100):
        for line in printed(known_reports.density_report(), width).splitlines():
            assert not line.rstrip().endswith("±")
            assert not line.startswith(("±", "%"))


def test_a_stream_without_unicode_gets_plain_letters():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    render(known_reports.density_report(), Console(file=stream, width=80))
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "500.00 +/- 0.90" in text
    assert "?" not in text


def test_the_head_says_what_was_measured():
    text = words(printed(known_reports.density_report()))
    assert text.startswith("org/model-70m@step3000 Qwen3ForCausalLM Hessian by double-backward, 4,000 parameters")
    assert "demo (train): 64 sequences, 32,704 tokens, 32,640 loss terms; loss 3.410 ± 0.098" in text


def test_a_loss_without_a_value_says_why():
    report = known_reports.trace_report()
    report.loss.value, report.loss.reason = None, "overflow in float32"
    assert "loss — (overflow in float32)" in words(printed(report))


def test_the_spread_between_rows_has_their_error_in_its_bar():
    report = known_reports.trace_report()
    spread = Metric(value=82.0, stderr=34.0, ci=(9.0, 155.0), errors=Errors(data=34.0))
    report.metrics = {"trace_batch_spread": spread}
    assert words(row(printed(report), "trace_batch_spread")) == "trace_batch_spread 82 73 data (34)"


def test_each_metric_has_its_error_and_the_main_source_of_it():
    text = printed(known_reports.density_report())
    assert words(row(text, "lambda_max")) == "lambda_max 500.00 0.90 data (0.45), not in the bar"
    found = words(row(text, "lambda_min"))
    assert found.startswith("lambda_min −50.00 0.30 algorithm (0.10); other parts not measured")  # noqa: RUF001
    assert words(row(text, "effective_rank")) == "effective_rank — — not measured by this probe"


def test_a_metric_without_an_interval_shows_a_dash_and_why():
    report = known_reports.trace_report(blocks=[])
    report.metrics = {"trace": known_reports.metric(910.0), "frobenius_norm": known_reports.metric(611.0)}
    report.metrics["frobenius_norm"].reason = "one probe has no spread"
    text = printed(report)
    assert words(row(text, "trace")) == "trace 910 — no interval: error not measured"
    assert words(row(text, "frobenius_norm")) == "frobenius_norm 611 — one probe has no spread"


def test_an_interval_that_leans_shows_both_arms():
    report = known_reports.trace_report(blocks=[])
    report.metrics["trace"].ci = (900.0, 990.0)
    assert "+80 −10" in row(printed(report), "trace")  # noqa: RUF001


def test_a_value_with_one_long_arm_is_rounded_away_neither_in_the_table_nor_in_the_sentence():
    report = known_reports.trace_report(blocks=[])
    report.metrics["trace"] = Metric(value=49.2, ci=(46.7, 28_000.0))
    text = printed(report)
    assert words(row(text, "trace")).startswith("trace 49.2 +28000 \N{MINUS SIGN}2.5")
    assert "The trace is 49.2 +28000 \N{MINUS SIGN}2.5, " in text


def test_an_unconverged_pair_says_no():
    text = printed(known_reports.topk_report())
    pairs = text[text.index("eigenpair") :]
    assert row(pairs, "1").split() == ["1", "500.00000", "0.00010", "1.0e-03", "yes"]
    assert row(pairs, "6").split() == ["6", "3.00", "—", "8.0e-01", "NO"]
    assert "1 of 8 pairs has not converged" in words(text)


def test_the_smallest_of_a_positive_matrix_is_not_taken_for_one_of_the_largest():
    pairs = [(9.0, "upper"), (8.0, "upper"), (0.2, "lower"), (0.1, "lower")]
    report = known_reports.topk_report()
    report.eigenpairs = [Eigenpair(value=v, residual=0.0, converged=True, bar=1e-3, end=end) for v, end in pairs]
    lines = printed(report).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("eigenpair"))
    indices = ["1", "2", "\N{MINUS SIGN}2", "\N{MINUS SIGN}1"]
    assert [line.split()[0] for line in lines[start + 2 : start + 6]] == indices
    assert [row[:2] for row in stems.table(report).rows] == [[1, 9.0], [2, 8.0], [-2, 0.2], [-1, 0.1]]
    assert [(index, pair.value) for index, pair in stems.indexed_pairs(report)][-1] == (-1, 0.1)


def test_a_run_that_looked_at_the_lower_end_speaks_of_the_smallest():
    report = known_reports.topk_report()
    report.metrics = {"lambda_min": Metric(value=-3.0, ci=(-3.1, -2.9))}
    report.eigenpairs = [Eigenpair(value=-3.0, residual=0.1, converged=True, bar=0.1, end="lower")]
    assert sentence(report).startswith("The smallest eigenvalue is \N{MINUS SIGN}3.00 ± 0.10; it converged")
    report.eigenpairs[0].converged = False
    assert "the smallest eigenvalue has not converged" in sentence(report).lower()
    assert "a smaller one may be missing" in sentence(report)


def test_many_blocks_are_listed_up_to_a_limit():
    text = printed(known_reports.blockdiag_report(60))
    assert "model.layers.38" in text
    assert "model.layers.39" not in text
    assert "and 20 more in the report" in text


def test_a_name_with_brackets_is_not_markup():
    report = known_reports.trace_report(2)
    report.model.id = "org/[bold]model[/bold]"
    report.blocks[0].name = "h[red]0"
    report.metrics["trace"] = known_reports.metric(None)
    report.metrics["trace"].reason = "no figure [for] this"
    text = printed(report)
    assert "org/[bold]model[/bold]" in text
    assert "h[red]0" in text
    assert "no figure [for] this" in text


def test_warnings_are_printed():
    assert "warning: 6 probes: the interval uses the t distribution" in printed(known_reports.trace_report())


@pytest.mark.parametrize("width", [24, 78, 200])
def test_the_sketch_shows_bulk_and_outliers_and_fits(width):
    lines = sketch(known_reports.density_report(), width)
    assert max(map(len, lines)) <= min(width, 96)
    assert lines[-1].split() == ["−50", "0", "500"]  # noqa: RUF001
    zero = lines[-2].index("┴")
    assert lines[0][zero - 4 : zero + 5].strip()
    assert lines[-1].index("0") == zero or lines[-1][zero] == "0"
    # The outliers stand apart from the bulk: something, nothing, something on each side.
    assert re.match(r"^\S+.*\s{3,}\S+\s{3,}.*\S+$", lines[3]) or width == 24


def test_no_spectrum_no_sketch():
    assert sketch(known_reports.topk_report(), 80) == []


def says(report):
    text = sentence(report)
    assert "\n" not in text
    assert text.endswith(".")
    assert text[0].isupper()
    return text


def test_the_density_sentence_gives_ends_and_where_most_of_the_spectrum_lies():
    text = says(known_reports.density_report())
    assert "The largest eigenvalue is 500.00 ± 0.90, about 10 times the size of the most negative one" in text
    assert "of the spectrum lies within 0.001 of zero" in text
    unbounded = known_reports.density_report()
    unbounded.spectrum.band = None
    assert "within" not in says(unbounded)


def test_an_end_that_may_be_zero_is_not_called_negative():
    report = known_reports.density_report()
    report.metrics["lambda_min"] = known_reports.metric(-0.1, 0.3)
    text = says(report)
    assert "not told apart from zero" in text
    assert "most negative" not in text
    report.metrics["lambda_min"] = known_reports.metric(0.5, 0.1)
    assert "and the smallest 0.50 ± 0.10" in says(report)


def test_figures_that_cannot_be_trusted_are_not_repeated():
    report = known_reports.density_report(status="untrustworthy", status_text="the product is not symmetric")
    assert says(report) == "These figures cannot be trusted: the product is not symmetric."


def test_a_run_that_has_not_converged_says_so_first():
    text = says(known_reports.topk_report(status="not_converged", status_text="raise --krylov-dim"))
    assert text.startswith("Not converged (raise --krylov-dim), so take this as provisional: the largest")


def test_a_top_pair_that_has_not_converged_is_no_largest_eigenvalue():
    pairs = [
        Eigenpair(value=500.0, residual=20.0, converged=False),
        Eigenpair(value=-50.0, residual=1e-3, converged=True, bar=1e-5),
    ]
    text = says(known_reports.topk_report(eigenpairs=pairs))
    assert text.startswith("The largest eigenvalue has not converged: one lies within 20 of 500")
    assert "a larger one may be missing" in text
    assert "The largest eigenvalue is" not in text
    assert "no pair has converged" in says(known_reports.topk_report(eigenpairs=pairs[:1]))
    assert says(known_reports.topk_report(eigenpairs=[], metrics={})) == "No eigenpair was found."


def test_the_trace_sentence_claims_a_sign_only_where_there_is_one():
    assert "not determined" not in says(known_reports.trace_report())
    report = known_reports.trace_report()
    report.metrics["trace"] = known_reports.metric(10.0, 60.0)
    assert "whether it is positive or negative is not determined" in says(report)
    report.metrics["trace"] = known_reports.metric(None)
    assert says(report) == "The trace could not be had."


@pytest.mark.parametrize(
    ("error", "cosine", "expected"),
    [
        (0.05, 0.99, ("holds closely", "above the 0.18")),
        (0.5, 0.85, ("holds only in part", "above the 0.18")),
        (0.91, 0.40, ("does not hold", "above the 0.18")),
        (0.98, 0.19, ("does not hold", "no different from the 0.18")),
        (0.99, 0.05, ("does not hold", "below the 0.18")),
    ],
)
def test_the_block_sentence_compares_with_the_baseline(error, cosine, expected):
    report = known_reports.blockdiag_report()
    report.metrics = {"relative_error": known_reports.metric(error, 0.02), "cosine": known_reports.metric(cosine, 0.02)}
    for part in expected:
        assert part in says(report)


def test_one_block_tests_nothing():
    report = known_reports.blockdiag_report()
    report.blocks = report.blocks[:1]
    assert "says nothing" in says(report)
