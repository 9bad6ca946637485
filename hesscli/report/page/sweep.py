"""The page of a sweep: what was varied, a row a cell, and the figures over all of them."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesscli.report.figures import overlay, trend
from hesscli.report.glossary import meaning
from hesscli.report.kernel import KERNEL
from hesscli.report.page.drawing import inline
from hesscli.report.page.links import address
from hesscli.report.page.metrics import figure_cell
from hesscli.report.page.parts import Cell, Column, Notice, Page, Picture, Section, Table
from hesscli.report.page.provenance import seconds
from hesscli.report.page.render import render
from hesscli.report.sweep import Manifest, read_cells, report_file
from hesscli.report.trends.points import Point, Trend, trend_of_sweep
from hesscli.report.words import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOK = {"ok": "good", "not_converged": "unsure", "skipped": "unsure", "missing": "unsure"}
_PAGE = "report.html"


def sweep_page(manifest: Manifest, file: Path, page: Path, *, files: Mapping[str, str]) -> str:
    """Return the page of a sweep as HTML, with the reports of its cells read from beside the manifest in `file`.

    A cell's link leads to its own page where there is one, else to its report; there is none if `files` is empty, which
    says that the page will lie elsewhere. Raises UsageError where the report of a cell cannot be read.
    """
    cells = read_cells(file, manifest)
    over = trend_of_sweep(manifest, cells)
    reports = [report_file(file, cell) if files else None for cell, _ in cells]
    links = [_link(report, page) for report in reports]
    varied = [f"{axis.key}: {', '.join(_text(value) for value in axis.values)}" for axis in manifest.axes]
    content = Page(
        title=manifest.name,
        kicker=f"Sweep of {manifest.probe} · {manifest.sweep_id}",
        finding=_finding(manifest),
        badges=_badges(manifest),
        lines=varied,
        cards=[],
        sections=[
            Section("figures", "Figures", pictures=_pictures(over, files)),
            Section("cells", "Cells", tables=[_cell_table(over, manifest, links)]),
            Section("failures", "What went wrong", notices=_failures(over, manifest)),
            Section("environment", "Environment", facts=[(k, v) for k, v in manifest.environment.items()]),
            Section("files", "Files", links=list(files.items())),
        ],
        footer=f"hess {manifest.environment.get('hess', '')} · {manifest.schema_} · sweep {manifest.sweep_id} · "
        f"{manifest.created} to {manifest.updated}",
    )
    return render(content)


def _finding(manifest: Manifest) -> str:
    total, done = len(manifest.cells), manifest.count("done")
    same = sum(cell.same_as is not None for cell in manifest.cells)
    text = f"{done} of {plural(total, 'cell')} {'is' if done == 1 else 'are'} done"
    parts = [
        f"{manifest.count(status)} {status}" for status in ("failed", "missing", "skipped") if manifest.count(status)
    ]
    text += f"; {', '.join(parts)}" if parts else ""
    if same and [axis.key for axis in manifest.axes] == [KERNEL]:
        return f"{text}: one measurement, drawn with each kernel."
    return f"{text}; {same} measured once with another of the same weights." if same else f"{text}."


def _badges(manifest: Manifest) -> list[Notice]:
    if manifest.count("failed"):
        return [Notice("bad", "failed cells", "")]
    whole = manifest.count("done") == len(manifest.cells)
    return [Notice("good", "complete", "") if whole else Notice("unsure", "not complete", "")]


def _pictures(over: Trend, files: Mapping[str, str]) -> list[Picture]:
    found: list[tuple[str, Callable[[], Figure], str]] = []
    if trend.tells(over):
        caption = f"Metrics over {over.x}, with 95 % intervals" if over.x else "Metrics, with 95 % intervals"
        found.append(("trend", partial(trend.figure, over), caption))
    if len(overlay.drawable(over)) > 1:
        found.append(("overlay", partial(overlay.figure, over), "Densities of the cells over each other"))
    return [
        Picture(inline(draw, name, caption), caption, files.get(f"{name}.csv", "")) for name, draw, caption in found
    ]


def _cell_table(over: Trend, manifest: Manifest, links: list[str]) -> Table:
    columns = [
        Column("cell", numeric=True),
        *[Column(axis.key.rpartition(".")[2], title=axis.key) for axis in over.axes],
    ]
    columns += [Column("status"), *[Column(name, numeric=True, title=meaning(name)) for name in over.metrics]]
    columns.append(Column("time", numeric=True))
    rows = []
    for index, (point, cell, link) in enumerate(zip(over.points, manifest.cells, links, strict=True)):
        status = Cell(point.status.replace("_", " "), look=_LOOK.get(point.status, "bad"))
        took = Cell("" if cell.seconds is None else seconds(cell.seconds), "" if cell.seconds is None else cell.seconds)
        values = [_value_cell(over, axis.key, point) for axis in over.axes]
        rows.append([Cell(str(index), index, link=link), *values, status, *_figures(over, point), took])
    return Table("A row a cell, with 95 % intervals. The number leads to the run.", columns, rows)


def _value_cell(over: Trend, key: str, point: Point) -> Cell:
    value = point.values.get(key)
    if key == over.x:  # in the order of the figure, where step2 stands before step10
        return Cell(_text(value), over.place(point))
    return Cell(_text(value), value if isinstance(value, int | float) else None)


def _figures(over: Trend, point: Point) -> list[Cell]:
    return [figure_cell(point.metric(name)) for name in over.metrics]


def _failures(over: Trend, manifest: Manifest) -> list[Notice]:
    found = []
    for index, (point, cell) in enumerate(zip(over.points, manifest.cells, strict=True)):
        words = ", ".join(f"{key}={_text(value)}" for key, value in cell.values.items())
        if cell.error:
            code = "" if cell.exit_code is None else f" (exit {cell.exit_code})"
            found.append(Notice("bad", f"cell {index}: {words}", f"{cell.error}{code}"))
        elif point.report is not None and point.report.status_text:
            found.append(Notice(_LOOK.get(point.status, "bad"), f"cell {index}: {words}", point.report.status_text))
    return found


def _link(report: Path | None, page: Path) -> str:
    if report is None:
        return ""
    own = report.with_name(_PAGE)
    return address(own if own.is_file() else report, page) if report.is_file() else ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
