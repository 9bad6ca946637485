"""The gates of a run: what its recipe and the command line demand of its report, and the verdicts in it."""

from collections.abc import Sequence
from pathlib import Path

from hesscli.errors import UsageError
from hesscli.recipe.gates import GateSection, baseline_path
from hesscli.report.comparing.measured import measured, read_measured
from hesscli.report.document import write_report
from hesscli.report.gating.check import Check, Demand, OnInconclusive, check, demands_of
from hesscli.report.gating.grammar import needs_baseline, parse
from hesscli.report.schema import Report


def demands_for(
    sections: Sequence[GateSection], asserts: Sequence[str] | None, baseline: str | None, *, folder: Path | None
) -> list[Demand]:
    """What a recipe in `folder` and the command line demand; --baseline stands in for the recipe's baselines.

    Every file is read here, so that a run of hours does not end at a misspelt one. Raises UsageError.
    """
    if not sections and not asserts:
        if baseline is not None:
            raise UsageError("baseline", "nothing is asserted", "give --assert EXPR too")
        return []
    typed = None if baseline is None else Path(baseline)
    out = []
    for place, section in enumerate(sections):
        expr, file = f"gates.{place}.assert", f"gates.{place}.baseline"
        own = typed or baseline_path(section, place, folder=folder or Path())
        try:
            assertion = parse(section.assert_)
        except UsageError as error:
            raise UsageError(expr, error.what, error.remedy) from None
        if own is None and needs_baseline(assertion):
            raise UsageError(file, "is missing: the assertion speaks of the base", "give it")
        out.append(Demand(assertion, own))
    out += demands_of(asserts or [], typed)
    for demand in out:
        if not needs_baseline(demand.assertion):
            continue
        if demand.baseline is not None:
            read_measured(demand.baseline, field="baseline")
        else:
            raise UsageError("baseline", "is missing: an assertion speaks of the base", "give --baseline FILE")
    return out


def judge_run(report: Report, path: Path, demands: Sequence[Demand], policy: OnInconclusive) -> Check | None:
    """Put the verdicts into the run's report, here and on disk; None where nothing is demanded.

    A run that was there already is judged anew, and one that is asked for without gates has none: what a report says of
    gates is what was last asked. Raises UsageError, after which the report on disk is as it was.
    """
    outcome = check([(str(path), measured(report))], demands, on_inconclusive=policy) if demands else None
    gates = outcome.reports[0].gates if outcome else []
    verdict = outcome.verdict if outcome else None
    if (gates, verdict) != (report.gates, report.verdict):
        report.gates, report.verdict = gates, verdict
        write_report(report, path)
    return outcome
