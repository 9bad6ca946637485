"""What `hess compare` says: one object, from which the table and the JSON are both made."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hesscli.report.comparing.comparability import check_comparable, unlike
from hesscli.report.comparing.difference import Direction, difference, figure_of
from hesscli.report.comparing.measured import Measured, headline
from hesscli.report.schema import Part, Status

SCHEMA: Literal["hess.compare/1"] = "hess.compare/1"
ALPHA = 0.05


class Row(Part):
    """One figure in both."""

    metric: str
    base: float | None = None
    new: float | None = None
    change: float | None = None
    ci: tuple[float, float] | None = None
    """Of the change, on this slice."""
    data: float | None = None
    """One standard error that the rows of the slice make of the change; not in `ci`."""
    method: Literal["paired", "welch", "added", "bounds", "exact"] | None = None
    verdict: Direction | None = None
    """None where the figures cannot be compared."""
    reason: str | None = None


class Side(Part):
    """A report of the comparison."""

    report: str
    model: str
    command: str
    status: Status


class Against(Side):
    """A new report against the base."""

    notes: list[str] = Field(default_factory=list)
    """What differs and is no figure."""
    rows: list[Row]


class Comparison(Part):
    """Everything that a comparison says."""

    schema_: Annotated[Literal["hess.compare/1"], Field(alias="schema")] = SCHEMA
    base: Side
    news: list[Against]
    level: float = 1 - ALPHA
    min_change: float = 0.0
    across: list[str] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


def compare(
    base: tuple[str, Measured],
    news: Collection[tuple[str, Measured]],
    *,
    min_change: float,
    across: Collection[str],
    blocks: bool,
) -> Comparison:
    """Return every figure of each new report against the base's, with the blocks' too if asked for.

    A change is called one if its 95 % interval leaves out zero and it is larger than `min_change` of the base. Each
    row has its own chance of a false call. Raises UsageError where a report is not comparable with the base.
    """
    found = []
    for name, new in news:
        notes = check_comparable(base[1], new, field=name, across=across)
        if new.status != "ok":
            notes.insert(0, f"status: {new.status.replace('_', ' ')}: {new.status_text}".rstrip(": "))
        names = [m for m in base[1].metrics | new.metrics if blocks or not m.startswith("blocks.")]
        rows = [_row(m, base[1], new, min_change, other_data="data.fingerprint" in across) for m in names]
        if added := [row.metric for row in rows if row.method == "added"]:
            notes.append(
                f"the errors of {', '.join(added)} may depend on each other (same seed, or same rows), and are added"
            )
        found.append(Against(**_side(name, new).model_dump(), notes=notes, rows=rows))
    return Comparison(base=_side(*base), news=found, min_change=min_change, across=sorted(across))


def _side(name: str, of: Measured) -> Side:
    return Side(report=name, model=headline(of), command=of.command, status=of.status)


def _row(name: str, base: Measured, new: Measured, min_change: float, *, other_data: bool) -> Row:
    row = Row(metric=name)
    figures = []
    for which, side in (("base", base), ("new", new)):
        if name not in side.metrics:
            row.reason = f"the {which} report has no such figure"
            continue
        setattr(row, which, side.metrics[name].value)
        figure = figure_of(side, name, source=which, other_data=other_data)
        if isinstance(figure, str):
            row.reason = row.reason or f"{which}: {figure}"
        else:
            figures.append(figure)
    row.reason = row.reason or unlike(base, new, name)
    if row.reason or len(figures) < 2:
        return row
    seen = difference(*figures, alpha=ALPHA, min_change=min_change)
    row.change, row.ci = seen.change.value, (seen.change.low, seen.change.high)
    row.data, row.method, row.verdict = seen.change.data, seen.change.method, seen.verdict
    return row
