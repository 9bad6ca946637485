"""The verbs that judge reports, compare and check, and the gates of the verbs that measure. They never import torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.markup import escape

from hesscli.cli.output import complain, result_console, say
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from hesscli.report.comparing.measured import Measured
    from hesscli.report.gating.check import Check, Demand, OnInconclusive

_GATE = "Gate"
_POLICIES = Literal["warn", "fail", "pass"]
Asserts = Annotated[
    list[str] | None,
    typer.Option(
        "--assert",
        metavar="EXPR",
        help="such as 'lambda_max <= base * 1.10' or 'unchanged(trace)'; repeat for more",
        rich_help_panel=_GATE,
        show_default=False,
    ),
]
BaselineFile = Annotated[
    str | None,
    typer.Option(
        "--baseline", metavar="FILE", help="what base stands for: a baseline or report", rich_help_panel=_GATE
    ),
]
Inconclusive = Annotated[
    str,
    typer.Option(
        "--on-inconclusive",
        metavar="warn|fail|pass",
        help=escape("where an interval lies across the limit [warn]"),
        rich_help_panel=_GATE,
        show_default=False,
    ),
]
_REPORTS = typer.Argument(metavar="REPORT", help="report.json, or a run folder", show_default=False)
_COMPARE = "Which figures changed from one report to others, beyond their errors."
_CHECK = "Judge reports by assertions: exit 3 where one fails."


def register(app: typer.Typer) -> None:
    """Put the verbs on the app."""
    app.command("compare", help=_COMPARE)(_compare)
    app.command("check", help=_CHECK)(_check)


def _compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help="report, run folder or baseline", show_default=False)],
    new: Annotated[list[str], typer.Argument(metavar="NEW", help="reports or run folders", show_default=False)],
    min_change: Annotated[
        str,
        typer.Option(
            "--min-change", metavar="X", help=escape("smaller changes are ~: 0.05 or 5% [0]"), show_default=False
        ),
    ] = "0",
    blocks: Annotated[bool, typer.Option("--blocks", metavar="", help="the blocks' figures too")] = False,
    across: Annotated[
        list[str] | None,
        typer.Option("--across", metavar="KEY", help="what is compared and may differ, such as model.dtype; repeat"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", metavar="", help="the comparison as JSON, nothing else")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", metavar="", help="only what changed, a line each")] = False,
) -> None:
    from hesscli.report.comparing.comparison import compare
    from hesscli.report.comparing.measured import read_measured
    from hesscli.report.comparing.table import changed, render_comparison
    from hesscli.report.document import dumps

    least = _share(min_change)
    first = (base, read_measured(base, field="base"))
    keys = sorted(first[1].settings)
    for key in across or []:
        if key not in keys:
            raise UsageError("across", f"{key!r} is not what reports must agree in", f"allowed: {', '.join(keys)}")
    others = [(name, read_measured(name, field="new")) for name in new]
    found = compare(first, others, min_change=least, across=across or [], blocks=blocks)
    if json:
        say(dumps(found).rstrip())
    elif quiet:
        for against, row in changed(found):
            say(f"{against.report}\t{row.metric}\t{row.verdict}")
    else:
        console = result_console()
        with console.capture() as text:
            render_comparison(found, console)
        _speak(text.get().rstrip("\n"))


def _share(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = float("nan")
    if not 0 <= share < float("inf"):
        raise UsageError("min_change", f"{text!r} is no share of the base", "write 0.05 or 5%")
    return share


def _check(
    reports: Annotated[list[str], _REPORTS],
    asserts: Asserts = None,
    baseline: BaselineFile = None,
    update_baseline: Annotated[
        bool,
        typer.Option(
            "--update-baseline", metavar="", help="write the report's figures to --baseline", rich_help_panel=_GATE
        ),
    ] = False,
    on_inconclusive: Inconclusive = "warn",
    junit: Annotated[
        str | None, typer.Option("--junit", metavar="FILE", help="JUnit XML too", rich_help_panel="Output")
    ] = None,
    json: Annotated[bool, typer.Option("--json", metavar="", help="the verdicts as JSON, nothing else")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", metavar="", help="pass, fail or inconclusive")] = False,
) -> None:
    from hesscli.report.comparing.measured import read_measured
    from hesscli.report.files import write_whole
    from hesscli.report.gating.accounts import junit as junit_xml
    from hesscli.report.gating.check import check, demands_of

    policy = policy_of(on_inconclusive)
    if not asserts and not update_baseline:
        raise UsageError("assert", "is missing", "give e.g. --assert 'lambda_max <= base * 1.10' --baseline FILE")
    demands = demands_of(asserts or [], None if baseline is None else Path(baseline))
    found = [(name, read_measured(name, field="report")) for name in reports]
    if update_baseline:
        demands = _without_base(demands, found, baseline)
    outcome = check(found, demands, on_inconclusive=policy)
    if junit is not None:
        write_whole(junit_xml(outcome), Path(junit), field="junit")
    if demands:
        _announce(outcome, json=json, quiet=quiet)
    if update_baseline and not outcome.exit_code:
        _update(found[0], Path(baseline or ""), json=json, quiet=quiet)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _without_base(
    demands: "Sequence[Demand]", found: "Sequence[tuple[str, Measured]]", baseline: str | None
) -> "list[Demand]":
    """The demands that a report can meet by itself; the others are asked of names that exist, against itself."""
    from hesscli.report.gating.grammar import needs_baseline
    from hesscli.report.gating.judge import judge

    if baseline is None:
        raise UsageError("update_baseline", "has no file to write", "give --baseline FILE")
    if len(found) > 1:
        raise UsageError("update_baseline", f"{len(found)} reports are given", "a baseline is of one")
    (name, new), relative = found[0], [d.assertion for d in demands if needs_baseline(d.assertion)]
    if new.status == "untrustworthy":
        raise UsageError(name, "is not trustworthy, and no baseline", "measure it again")
    judge(relative, new, new, num_unchanged=1)
    if relative:
        complain(
            f"{len(relative)} of {len(demands)} assertions speak of the base, which this report becomes: not judged"
        )
    return [d for d in demands if not needs_baseline(d.assertion)]


def _update(found: "tuple[str, Measured]", path: Path, *, json: bool, quiet: bool) -> None:
    from hesscli.report.comparing.measured import write_baseline

    write_baseline(found[1], path)
    (complain if json or quiet else say)(f"baseline  {path}")


def policy_of(word: str) -> "OnInconclusive":
    """What is to be done about an inconclusive gate."""
    found: dict[str, OnInconclusive] = {policy: policy for policy in get_args(_POLICIES)}
    if word in found:
        return found[word]
    raise UsageError("on_inconclusive", f"{word!r} is not allowed", "allowed: warn, fail, pass")


def announce_run(outcome: "Check", *, shown: bool) -> None:
    """Say a run's verdicts after its figures, and to GitHub Actions; on stdout only where `shown`."""
    _announce(outcome, json=False, quiet=False, shown=shown)


def _announce(outcome: "Check", *, json: bool, quiet: bool, shown: bool = True) -> None:
    from hesscli.report.document import dumps
    from hesscli.report.gating.accounts import annotations, lines, markdown

    if json:
        say(dumps(outcome).rstrip())
    elif quiet:
        say(outcome.verdict)
    elif shown:
        _speak("\n".join(lines(outcome)))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations(outcome):  # the runner reads both streams; stdout may have to be JSON
            complain(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(markdown(outcome) + "\n")
        except OSError as error:
            complain(f"warning: GITHUB_STEP_SUMMARY cannot be written: {error.strerror or error}")
    if outcome.verdict == "inconclusive" and outcome.on_inconclusive == "warn":
        complain("warning: an assertion is inconclusive; more --probes or --steps narrow an interval")


def _speak(text: str) -> None:
    """A result with signs that a stream of few letters has plain ones for."""
    import sys

    from hesscli.report.terminal import PLAIN

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
    say(text)
