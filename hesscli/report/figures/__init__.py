"""Figures of a report: drawn from the report alone, each with a table of its numbers beside it.

matplotlib is imported only while something is drawn.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hesscli.errors import UsageError
from hesscli.report.figures import blocks, coupling, density, residuals, stems, traces
from hesscli.report.figures.table import Table, write_table
from hesscli.report.schema import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")

Drawing = tuple[str, Callable[[Report], "Figure"], list[Table]]


def draw(report: Report, folder: str | Path, formats: Sequence[str] = FORMATS) -> list[str]:
    """Draw the figures of the report's command into `folder` and return the names of the files written.

    Each figure is written in every format and has a CSV beside it. No formats, no files.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError("plots", f"{unknown[0]!r} is not a format", f"choose from {', '.join(FORMATS)} or none")
    if not formats:
        return []
    from hesscli.report.figures.canvas import save, style

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, figure, tables in drawings(report):
        with style():
            names += save(figure(report), folder, name, formats)
        names += [write_table(table, folder) for table in tables]
    return names


def drawings(report: Report) -> list[Drawing]:
    """Return (name, figure, tables) for what the report holds; nothing where there is nothing to draw."""
    found: list[Drawing] = []
    if report.command == "density" and report.spectrum is not None:
        found.append(("density", density.figure, density.tables(report)))
    if report.command == "topk" and report.eigenpairs:
        found.append(("topk", stems.figure, [stems.table(report)]))
    if report.command == "blockdiag" and report.blocks:
        found.append(("blockdiag", blocks.figure, [blocks.table(report)]))
    if report.command == "trace" and report.blocks:
        found.append(("trace", traces.figure, [traces.table(report)]))
    if report.solve is not None and any(s.ending != "zero" for s in report.solve.systems):
        found.append(("solve", residuals.figure, [residuals.table(report)]))
    if report.coupling is not None and report.coupling.blocks:
        found.append(("coupling", coupling.figure, [coupling.table(report)]))
    return found
