"""`hess compare` and `hess check` from reports alone: exit codes, streams, JUnit, annotations, baselines."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from written_reports import figure, on_disk, sampled, written

from hesscli.report.comparing.measured import measured, write_baseline

LIMIT = ["--assert", "lambda_max < 50"]


@pytest.fixture(autouse=True)
def no_actions(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def reports(tmp_path):
    """A baseline, and reports that pass, fail and decide nothing under LIMIT."""
    for name, value in (("low", 40.0), ("high", 60.0), ("middle", 50.0)):
        on_disk(tmp_path / name / "report.json", {"lambda_max": figure(value, half=1.0)}, command="topk")
    write_baseline(measured(written({"lambda_max": figure(40.0, half=1.0)}, command="topk")), tmp_path / "base.json")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["low", *LIMIT], 0),
        (["low/report.json", *LIMIT], 0),
        (["high", *LIMIT], 3),
        (["middle", *LIMIT], 0),
        (["middle", *LIMIT, "--on-inconclusive", "pass"], 0),
        (["middle", *LIMIT, "--on-inconclusive", "fail"], 3),
        (["low", "high", *LIMIT], 3),
        (["low", "--assert", "lambda_max <= base * 1.1", "--baseline", "base.json"], 0),
        (["high", "--assert", "lambda_max <= base * 1.1", "--baseline", "base.json"], 3),
        (["high", "--assert", "unchanged(lambda_max)", "--baseline", "low"], 3),
        (["low", "--assert", "unchanged(lambda_max)", "--baseline", "base.json"], 0),
        (["low"], 2),
        (["low", "--assert", "lambda_mix < 3"], 2),
        (["low", "--assert", "lambda_max == 3"], 2),
        (["low", "--assert", "lambda_max < base"], 2),
        (["low", "--assert", "lambda_max < base", "--baseline", "nowhere.json"], 2),
        (["nowhere", *LIMIT], 2),
        (["low", *LIMIT, "--on-inconclusive", "maybe"], 2),
        (["low", "high", "--baseline", "new.json", "--update-baseline"], 2),
        (["low", "--update-baseline"], 2),
    ],
)
def test_the_exit_code_says_what_became_of_the_gates(hess, reports, words, code):
    ended = hess("check", *words)
    assert ended.code == code, ended.err
    assert ended.err.startswith("error: ") == (code == 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["low", "--assert", "lambda_mix < 3"], "did you mean lambda_max?"),
        (["low", "--assert", "lambda_max < base"], "error: baseline: is missing"),
        (["low", "--assert", "lambda_max < base", "--baseline", "no.json"], "error: baseline: no such file: no.json"),
        (["low"], "error: assert: is missing"),
        (["low", *LIMIT, "--on-inconclusive", "maybe"], "allowed: warn, fail, pass"),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(hess, reports, words, says):
    ended = hess("check", *words)
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1


def test_incomparable_reports_are_refused_with_the_field(hess, reports):
    other = written({"lambda_max": figure(40.0, half=1.0)}, command="topk", data__fingerprint="sha256:11")
    write_baseline(measured(other), reports / "other.json")
    ended = hess("check", "low", "--assert", "unchanged(lambda_max)", "--baseline", "other.json")
    assert ended.code == 2
    assert "error: baseline: data.fingerprint: not comparable: sha256:11 against sha256:00" in ended.err
    assert hess("check", "low", *LIMIT, "--baseline", "other.json").code == 0  # nothing speaks of it


def test_text_json_junit_and_annotations_say_the_same(hess, reports, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(reports / "summary.md"))
    (reports / "summary.md").write_text("before\n")
    words = ["check", "low", "high", "middle", *LIMIT, "--junit", "gates.xml"]
    text, as_json = hess(*words), hess(*words, "--json")
    verdicts = ["pass", "fail", "inconclusive"]

    assert [line.split()[0].lower() for line in text.out.splitlines() if "lambda_max < 50" in line] == verdicts
    assert "1 of 3 passed, 1 failed, 1 inconclusive" in text.out
    found = json.loads(as_json.out)
    assert [one["verdict"] for one in found["reports"]] == verdicts
    assert (found["verdict"], found["exit_code"], text.code, as_json.code) == ("fail", 3, 3, 3)

    suites = ElementTree.parse(reports / "gates.xml").getroot()
    assert suites.attrib | {"name": ""} == {"name": "", "tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    cases = suites.findall("testsuite/testcase")
    assert [[child.tag for child in case] for case in cases] == [["system-out"], ["failure"], ["skipped"]]
    assert {case.get("name") for case in cases} == {"lambda_max < 50"}

    commands = [line for line in text.err.splitlines() if line.startswith("::")]
    assert [line.split(" ")[0] for line in commands] == ["::error", "::warning"]
    summary = (reports / "summary.md").read_text()
    assert summary.startswith("before\n### hess check: fail\n")
    assert [line.split("|")[3].strip() for line in summary.splitlines() if "lambda_max < 50" in line][:3] == verdicts


def test_what_github_reads_is_escaped(hess, reports, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(reports / "summary.md"))
    evil = "a|b<script>\n::error::100%, `c`"
    on_disk(reports / "evil" / "report.json", {"lambda_max": figure(60.0, half=1.0)}, model__id=evil)
    ended = hess("check", "evil", "--assert", "min(lambda_max, 90%) > 2", "--junit", "gates.xml")
    (line,) = [line for line in ended.err.splitlines() if line.startswith("::")]
    title = "hess%3A fail%3A min(lambda_max%2C 90%25) > 2"
    assert line.startswith(f"::error title={title}::a|b<script>%0A::error::100%25, `c`@main (evil): ")
    row = (reports / "summary.md").read_text().splitlines()[4]
    assert row.startswith(
        "| a\\|b&lt;script&gt; ::error::100%, &#96;c&#96;@main (trace) | `` min(lambda_max, 90%) > 2 `` |"
    )
    assert ElementTree.parse(reports / "gates.xml").getroot()[0].get("name").startswith("trace a|b<script>")


def test_nothing_is_said_to_github_elsewhere(hess, reports):
    assert "::" not in hess("check", "high", *LIMIT).err


def test_a_summary_that_cannot_be_written_changes_no_verdict(hess, reports, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(reports / "nowhere" / "summary.md"))
    ended = hess("check", "low", *LIMIT)
    assert (ended.code, "warning: GITHUB_STEP_SUMMARY" in ended.err) == (0, True)


def test_quiet_says_the_verdict_alone(hess, reports):
    assert [hess("check", name, *LIMIT, "-q").out for name in ("low", "high", "middle")] == [
        "pass\n",
        "fail\n",
        "inconclusive\n",
    ]


def test_a_report_that_is_not_trustworthy_fails(hess, reports):
    on_disk(reports / "bad" / "report.json", {}, status="untrustworthy", status_text="a product is not finite")
    ended = hess("check", "bad", *LIMIT)
    assert (ended.code, "a product is not finite" in ended.out) == (3, True)
    assert hess("check", "bad", "--baseline", "new.json", "--update-baseline").code == 2
    assert not (reports / "new.json").exists()
    base = hess("check", "low", "--assert", "unchanged(lambda_max)", "--baseline", "bad")
    assert (base.code, "not trustworthy" in base.err) == (2, True)


def test_a_baseline_is_updated_only_if_the_other_assertions_hold(hess, reports):
    update = ["--baseline", "base.json", "--update-baseline", "--assert", "lambda_max <= base"]
    before = (reports / "base.json").read_text()
    assert hess("check", "high", *update, *LIMIT).code == 3
    assert (reports / "base.json").read_text() == before
    ended = hess("check", "high", *update)
    assert (ended.code, ended.out) == (0, "baseline  base.json\n")
    assert hess("check", "high", "--baseline", "base.json", "--assert", "unchanged(lambda_max)").code == 0
    assert hess("check", "low", "--baseline", "base.json", "--assert", "unchanged(lambda_max)").code == 3
    assert hess("check", "high", "--baseline", "base.json", "--update-baseline", "--assert", "trac<base").code == 2
    assert not list(reports.glob("*.part"))


def test_a_baseline_that_does_not_fit_can_be_replaced(hess, reports):
    (reports / "base.json").write_text('{"schema": "hess.baseline/0"}')
    words = ["check", "low", "--baseline", "base.json", "--assert", "unchanged(lambda_max)"]
    assert [hess(*words).code, hess(*words, "--update-baseline").code, hess(*words).code] == [2, 0, 0]


def test_a_baseline_that_cannot_be_written_is_refused(hess, reports):
    ended = hess("check", "low", "--baseline", "nowhere/base.json", "--update-baseline")
    assert (ended.code, ended.err.startswith("error: baseline: base.json cannot be written")) == (2, True)


def test_compare_shows_base_new_and_verdict(hess, reports):
    ended = hess("compare", "low", "high", "middle")
    assert ended.code == 0
    rows = [line.split() for line in ended.out.splitlines() if line.startswith("lambda_max")]
    assert [row[1:] for row in rows] == [
        ["40.0", "60.0", "+20.0", "2.0", "+50", "higher"],
        ["40.0", "50.0", "+10.0", "2.0", "+25", "higher"],
    ]
    assert hess("compare", "low", "low", "-q").out == ""
    assert (
        hess("compare", "low", "high", "middle", "-q").out == "high\tlambda_max\thigher\nmiddle\tlambda_max\thigher\n"
    )
    assert hess("compare", "low", "high", "middle", "-q", "--min-change", "30%").out == "high\tlambda_max\thigher\n"
    assert hess("compare", "base.json", "high", "-q").out == "high\tlambda_max\thigher\n"


def test_compare_as_json_is_the_comparison(hess, reports):
    found = json.loads(hess("compare", "low", "high", "--json").out)
    (row,) = found["news"][0]["rows"]
    assert (found["schema"], row["change"], row["ci"], row["verdict"]) == (
        "hess.compare/1",
        20.0,
        [18.0, 22.0],
        "higher",
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["low", "other"], "error: other: data.fingerprint: not comparable"),
        (["low", "nowhere"], "error: new: no such file: nowhere"),
        (["nowhere", "low"], "error: base: no such file: nowhere"),
        (["low", "high", "--min-change", "x"], "error: min_change: 'x' is no share of the base; write 0.05 or 5%"),
        (["low", "high", "--min-change", "-5%"], "is no share of the base"),
        (
            ["low", "other", "--across", "data"],
            "error: across: 'data' is not what reports must agree in; allowed: data.f",
        ),
    ],
)
def test_compare_refuses_in_one_line(hess, reports, words, says):
    figures = {"lambda_max": sampled(40.0, 1.0, data=2.0)}
    on_disk(reports / "other" / "report.json", figures, command="topk", data__fingerprint="sha256:11")
    ended = hess("compare", *words)
    assert ended.code == 2
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_stream_of_few_letters_gets_plain_ones(reports):
    code = "from hesscli.cli.app import main; main()"
    for words in (["check", "low", *LIMIT], ["compare", "low", "high"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=reports,
            env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"+/-" in done.stdout


@pytest.mark.parametrize("words", [["check", "low", *LIMIT], ["compare", "low", "high"]])
def test_neither_imports_torch(reports, words):
    code = (
        "import sys\nfrom hesscli.cli.app import _exit_code\n"
        f"code = _exit_code({words!r})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=reports, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
