"""What `hess check` says: one object, from which text, JSON, JUnit, annotations and the exit code are all made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hesscli.report.comparing.comparability import check_comparable
from hesscli.report.comparing.measured import Measured, headline, read_measured
from hesscli.report.gating.grammar import Assertion, Unchanged, needs_baseline, parse
from hesscli.report.gating.judge import ALPHA, judge, overall
from hesscli.report.schema import Gate, Part, Status, Verdict

OnInconclusive = Literal["warn", "fail", "pass"]
FAILED = 3
SCHEMA: Literal["hess.check/1"] = "hess.check/1"


@dataclass(frozen=True)
class Demand:
    """An assertion and the file of the baseline that it speaks of."""

    assertion: Assertion
    baseline: Path | None = None


class Judged(Part):
    """One report, and what became of each assertion on it."""

    report: str
    """Its path, as it was given."""
    command: str
    model: str
    status: Status
    gates: list[Gate]
    verdict: Verdict
    notes: list[str] = Field(default_factory=list)
    """That the run has not converged, and what differs from the baseline and does not stand in the way."""


class Check(Part):
    """Everything that a check says."""

    schema_: Annotated[Literal["hess.check/1"], Field(alias="schema")] = SCHEMA
    verdict: Verdict
    exit_code: int
    on_inconclusive: OnInconclusive
    baselines: list[str] = Field(default_factory=list)
    alpha: float = ALPHA
    """The chance of a false alarm of all `unchanged` together; intervals are those of 1 - 0.05."""
    reports: list[Judged]

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


def demands_of(lines: Sequence[str], baseline: Path | None) -> list[Demand]:
    """Return what these lines demand.

    Raises UsageError where one does not parse.
    """
    return [Demand(parse(line), baseline) for line in lines]


def check(
    reports: Sequence[tuple[str, Measured]], demands: Sequence[Demand], *, on_inconclusive: OnInconclusive
) -> Check:
    """Return the verdict on each report, of each demand.

    Raises UsageError where an assertion names no figure, a baseline is missing, or a report is not comparable to it.
    """
    num_unchanged = sum(isinstance(d.assertion, Unchanged) for d in demands) * len(reports)
    spoken_of = [d.baseline for d in demands if d.baseline is not None and needs_baseline(d.assertion)]
    bases = {path: read_measured(path, field="baseline") for path in dict.fromkeys(spoken_of)}
    judged = []
    for name, new in reports:
        gates, notes = [], dict[str, None]()
        if new.status == "not_converged":
            notes[f"status: not converged: {new.status_text}".rstrip(": ")] = None
        for demand in demands:
            base = None
            if demand.baseline is not None and needs_baseline(demand.assertion):
                base = bases[demand.baseline]
                notes |= dict.fromkeys(check_comparable(base, new, field="baseline"))
            gates += judge([demand.assertion], new, base, num_unchanged=num_unchanged)
        judged.append(
            Judged(
                report=name,
                command=new.command,
                model=headline(new),
                status=new.status,
                gates=gates,
                verdict=overall(gates),
                notes=list(notes),
            )
        )
    verdict = overall([gate for one in judged for gate in one.gates])
    return Check(
        verdict=verdict,
        exit_code=exit_code(verdict, on_inconclusive),
        on_inconclusive=on_inconclusive,
        baselines=[path.name for path in bases],
        reports=judged,
    )


def exit_code(verdict: Verdict, on_inconclusive: OnInconclusive) -> int:
    """Return what a check with this verdict ends in."""
    bad = verdict == "fail" or (verdict == "inconclusive" and on_inconclusive == "fail")
    return FAILED if bad else 0
