"""A comparison in the terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hesscli.report.comparing.comparison import Against, Comparison, Row
from hesscli.report.rounding import MINUS, apart, arm, significant
from hesscli.report.words import DASH, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


# Of the base and the new value: the change, which is what counts, has all of its own.
_DIGITS = 5


def render_comparison(comparison: Comparison, console: "Console") -> None:
    """Print a table for each new report, and what its words mean."""
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), highlight=False)

    line(f"base  {comparison.base.model}  {comparison.base.report}", "bold")
    if comparison.base.status != "ok":
        line(f"note: the base is {comparison.base.status.replace('_', ' ')}")
    for against in comparison.news:
        line(f"new   {against.model}  {against.report}", "bold")
        for note in against.notes:
            line(f"note: {note}")
        console.print()
        console.print(_table(against))
        for text in _unsaid(against):
            line(text)
        console.print()
    for text in _legend(comparison):
        line(text)


def changed(comparison: Comparison) -> Iterator[tuple[Against, Row]]:
    """Yield the rows that are called a change."""
    for against in comparison.news:
        for row in against.rows:
            if row.verdict in ("higher", "lower"):
                yield against, row


def _table(against: Against) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("metric", overflow="fold")
    for name in ("base", "new", "change", "± 95 %", "%"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in against.rows:
        if row.verdict is None:
            continue
        assert row.base is not None
        assert row.new is not None
        cells = [row.metric, _value(row.base, row), _value(row.new, row), *_change(row), _relative(row)]
        table.add_row(*map(Text, cells), Text(row.verdict, style="" if row.verdict == "~" else "bold"))
    return table


def _value(value: float, row: Row) -> str:
    """The value to the place that the change's error supports, and no further than fits beside the change."""
    half, short = _halfwidth(row), significant(value, _DIGITS)
    exact = apart(value, half)[0] if half else short
    return exact if len(exact) < len(short) else short


def _halfwidth(row: Row) -> float:
    assert row.change is not None
    assert row.ci is not None
    return max(row.change - row.ci[0], row.ci[1] - row.change)


def _change(row: Row) -> tuple[str, str]:
    assert row.change is not None
    assert row.ci is not None
    below, above, half = row.change - row.ci[0], row.ci[1] - row.change, _halfwidth(row)
    if not half:
        return _signed(significant(row.change, 6)), "0"
    change, error = apart(row.change, half)
    if abs(above - below) > 0.2 * half:
        error = f"+{arm(above)} {MINUS}{arm(below)}"
    return _signed(change), error


def _signed(text: str) -> str:
    return text if text.startswith(MINUS) or not text.strip("0.") else f"+{text}"


def _relative(row: Row) -> str:
    if not row.base or row.change is None:
        return DASH
    return _signed(significant(100 * row.change / abs(row.base), 2))


def _unsaid(against: Against) -> list[str]:
    paired = [row.metric for row in against.rows if row.method == "paired"]
    shown = ", ".join(paired[:4]) + (f" and {len(paired) - 4} more" if len(paired) > 4 else "")
    out = [f"Same draws in both, compared one by one: {shown}."] if paired else []
    spread = [f"{row.metric} {significant(row.data, 2)}" for row in against.rows if row.data and _top(row)]
    if spread:
        text = "The change is that on this slice; other rows would move it by about (one standard error): "
        out.append(f"{text}{', '.join(spread)}.")
    return out + [f"{row.metric}: not compared: {row.reason}" for row in against.rows if row.verdict is None]


def _top(row: Row) -> bool:
    return not row.metric.startswith("blocks.")


def _legend(comparison: Comparison) -> Iterator[str]:
    rows = [row for against in comparison.news for row in against.rows]
    judged = sum(row.verdict is not None for row in rows)
    least = f", and larger than {percent(comparison.min_change)} of the base" if comparison.min_change else ""
    yield f"~ no change is shown; higher, lower: the 95 % interval of the change leaves out zero{least}."
    if judged >= 5:
        yield f"Each of {judged} figures by itself: where none changes, about one in 20 is called a change."
