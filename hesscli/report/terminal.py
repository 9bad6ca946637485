"""A report in the terminal: what was measured, the figures with their errors, what was found."""

from textwrap import wrap
from typing import TYPE_CHECKING

from hesscli.report.rounding import with_error
from hesscli.report.schema import Loss, Report
from hesscli.report.sentence import sentence
from hesscli.report.words import DASH, KIND, NBSP, amount, headline, plural, thousands, tied

if TYPE_CHECKING:
    from rich.console import Console

# For a stream that cannot carry these: every letter of a report has a plain one beside it.
PLAIN = str.maketrans(
    {"±": "+/-", "−": "-", "—": "-", "·": "|", "×": "x", "…": "...", "─": "-", "┴": "+", "λ": "lambda"}  # noqa: RUF001
    | dict(zip("▁▂▃▄▅▆▇█", "..::||##", strict=True))
)


def render(report: Report, console: "Console") -> None:
    """Print the report to the console; nothing is wider than it, and colour carries nothing by itself."""
    if (console.encoding or "utf-8").lower().startswith("utf"):
        _print(report, console)
        return
    with console.capture() as captured:
        _print(report, console)
    text = captured.get().translate(PLAIN)
    console.file.write(text.encode(console.encoding, "replace").decode(console.encoding))


def _print(report: Report, console: "Console") -> None:
    from rich.padding import Padding
    from rich.text import Text

    from hesscli.report.sketch import sketch
    from hesscli.report.tables import block_table, metric_table, pair_table, system_table

    def line(text: str, style: str = "") -> None:
        for piece in _wrapped(text, console.width):
            console.print(Text(piece, style=style), highlight=False)

    line(f"{headline(report)}  {report.model.class_name}", "bold")
    for text in measured(report):
        line(text)
    console.print()
    line(sentence(report), "" if report.status == "ok" else "bold red")
    for table in (
        metric_table(report) if report.metrics else None,
        system_table(report.solve) if report.solve is not None and len(report.solve.systems) > 1 else None,
        pair_table(report) if report.eigenpairs else None,
        block_table(report) if report.blocks else None,
    ):
        if table is not None:
            console.print(Padding(table, (1, 0, 0, 0), expand=False))
    drawn = sketch(report, console.width - 2)
    if drawn:
        console.print()
        line("density of eigenvalues (asinh axis, logarithmic height)")
        for text in drawn:
            console.print(Text(f" {text}"), highlight=False, no_wrap=True)
    if report.warnings:
        console.print()
    for warning in report.warnings:
        line(f"warning: {warning.text}", "yellow")


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text; a value stays with its error and its unit."""
    return [line.replace(NBSP, " ") for line in wrap(tied(text), width)]


def measured(report: Report) -> list[str]:
    """Return the lines that say which matrix of which weights was measured on which slice."""
    model, data, operator = report.model, report.data, report.operator
    of = f" of {thousands(model.num_parameters)}" if model.num_selected != model.num_parameters else ""
    source = f"{data.id} ({data.split})" if data.split else data.id
    of_what = "" if model.task == "image-classification" else f"{plural(data.sequences, 'sequence')}, "
    return [
        f"{KIND[operator.kind]} by {operator.product}, {thousands(model.num_selected)}{of} parameters, {model.dtype}",
        f"{source}: {of_what}{amount(report)}, {thousands(data.loss_terms)} loss terms; {_loss(report.loss)}",
    ]


def _loss(loss: Loss) -> str:
    if loss.value is None:
        return f"loss {DASH} ({loss.reason or 'not finite'})"
    return f"loss {with_error(loss.value, None if loss.stderr is None else 1.96 * loss.stderr)}"
