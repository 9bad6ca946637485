"""The gates of reports as JUnit XML, the form that CI servers read."""

from collections.abc import Sequence

from hesscli.report.gating.accounts import junit as junit_xml
from hesscli.report.gating.check import Check, Judged
from hesscli.report.schema import Gate, Report
from hesscli.report.words import distrust, headline


def junit(reports: Sequence[Report]) -> str:
    """Return a suite per report: a case for the status of the run, and one per gate that the report holds.

    A run that cannot be trusted has failed. One that has not converged, and an inconclusive gate, are skipped with the
    reason.
    """
    judged = [
        Judged(
            report=report.run_id,
            command=report.command,
            model=headline(report),
            status=report.status,
            gates=[_status(report), *report.gates],
            verdict=report.verdict or _status(report).verdict,
        )
        for report in reports
    ]
    return junit_xml(Check(verdict="pass", exit_code=0, on_inconclusive="warn", reports=judged))


def _status(report: Report) -> Gate:
    verdicts = {"ok": "pass", "not_converged": "inconclusive", "untrustworthy": "fail"}
    return Gate.model_validate({"expr": "status", "verdict": verdicts[report.status], "text": distrust(report)})
