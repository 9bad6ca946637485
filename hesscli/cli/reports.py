"""The verbs that work from JSON alone: plot and schema. They never import torch."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from hesscli.cli.output import say
from hesscli.errors import UsageError
from hesscli.report.kernel import KERNEL, with_kernel

if TYPE_CHECKING:
    from hesscli.report.schema import Report
    from hesscli.report.trends.points import Trend


def register(app: typer.Typer) -> None:
    """Put the verbs on the app."""
    app.command("plot", help="Draw the figures of reports again, from JSON alone.")(_plot)
    app.command("schema", help="The JSON schema of a recipe, a report or a plan (hess plan --json).")(_schema)


def _plot(
    reports: Annotated[
        list[str],
        typer.Argument(
            metavar="REPORT|SWEEP", help="report.json, a run folder, or a sweep's folder", show_default=False
        ),
    ],
    output_dir: Annotated[
        str | None, typer.Option("-o", "--output-dir", metavar="DIR", help=escape("folder [the report's own]"))
    ] = None,
    plots: Annotated[
        str, typer.Option("--plots", metavar="LIST", help=escape("formats [png,svg]"), show_default=False)
    ] = "png,svg",
    together: Annotated[
        bool, typer.Option("--together", metavar="", help="one trend, and one overlay of densities, over all reports")
    ] = False,
    kernel_width: Annotated[
        str | None,
        typer.Option(
            "--kernel-width",
            metavar="X|X%|auto",
            help=escape("draw densities with Gaussians of one sigma: X, or X% of the range [as the run did]"),
            show_default=False,
        ),
    ] = None,
) -> None:
    formats = [word.strip() for word in plots.split(",") if word.strip()]
    if not formats or formats == ["none"]:
        raise UsageError("plots", f"{plots!r} names no format", "choose from png, svg")
    width = None if kernel_width is None else _kernel(kernel_width)
    if together:
        _draw_together(reports, Path(output_dir or "."), formats, width)
        return
    for name in reports:
        path = Path(name)
        _draw_one(path, Path(output_dir) if output_dir else path if path.is_dir() else path.parent, formats, width)


def _kernel(text: str) -> float | str:
    from pydantic_core import PydanticCustomError

    from hesscli.recipe.schema import parse_kernel_width

    try:
        return parse_kernel_width(text)
    except PydanticCustomError as error:
        raise UsageError("kernel_width", f"{text!r} does not fit", f"it should be {error.message()}") from None


def _with_kernel(report: "Report", width: float | str | None, path: Path) -> "Report":
    """The report to be drawn with this kernel, None for its own. Raises UsageError where there is no density."""
    if width is not None and report.spectrum is None:
        raise UsageError("kernel_width", f"{str(path)!r} has no density to draw", "leave --kernel-width out")
    return report if width is None else with_kernel(report, width)


def _all_with_kernel(trend: "Trend", width: float | str | None, path: Path) -> "Trend":
    """The same for many reports; where they differ in their kernels, one for all of them would belie their names."""
    if width is None:
        return trend
    if KERNEL in (axis.key for axis in trend.axes):
        raise UsageError("kernel_width", f"{str(path)!r} has one of its own for each cell", "leave --kernel-width out")
    if not any(point.report is not None and point.report.spectrum is not None for point in trend.points):
        raise UsageError("kernel_width", f"{str(path)!r} has no density to draw", "leave --kernel-width out")
    points = [replace(p, report=p.report and with_kernel(p.report, width)) for p in trend.points]
    return replace(trend, points=points)


def _draw_one(path: Path, folder: Path, formats: list[str], width: float | str | None) -> None:
    from hesscli.report.document import read_report
    from hesscli.report.figures import draw
    from hesscli.report.figures.together import draw_together
    from hesscli.report.sweep import MANIFEST, read_cells, read_manifest
    from hesscli.report.trends.points import trend_of_sweep

    if path.name == MANIFEST or (path / MANIFEST).is_file():
        file = path / MANIFEST if path.is_dir() else path
        manifest = read_manifest(file)
        trend = _all_with_kernel(trend_of_sweep(manifest, read_cells(file, manifest)), width, path)
        _draw(lambda: draw_together(trend, folder, formats), folder, f"{str(path)!r} has no cell with a figure")
        return
    report = _with_kernel(read_report(path / "report.json" if path.is_dir() else path), width, path)
    nothing = f"{str(path)!r} holds nothing to draw (status: {report.status})"
    _draw(lambda: draw(report, folder, formats), folder, nothing)


def _draw_together(names: list[str], folder: Path, formats: list[str], width: float | str | None) -> None:
    from hesscli.report.document import read_report
    from hesscli.report.figures.together import draw_together
    from hesscli.report.trends.points import trend_of_reports

    paths = [Path(name) for name in names]
    trend = trend_of_reports([read_report(path / "report.json" if path.is_dir() else path) for path in paths])
    trend = _all_with_kernel(trend, width, paths[0])
    _draw(lambda: draw_together(trend, folder, formats), folder, "the reports hold no figure that can be drawn")


def _draw(drawing: Callable[[], list[str]], folder: Path, nothing: str) -> None:
    """Make the folder and the figures in it, and say their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = drawing()
    except OSError as error:
        what = f"{str(folder)!r} cannot be written ({error.strerror or error})"
        raise UsageError("output_dir", what, "give another with -o") from error
    if not names:
        raise UsageError("report", nothing, "measure again")
    for drawn in names:
        say(str(folder / drawn))


def _schema(what: Annotated[str, typer.Argument(metavar="recipe|report|plan", show_default=False)]) -> None:
    if what == "recipe":
        from hesscli.recipe import Recipe as Model
    elif what == "report":
        from hesscli.report.schema import Report as Model  # type: ignore[assignment]
    elif what == "plan":
        from hesscli.run.planning.document import Plan as Model  # type: ignore[assignment]
    else:
        raise UsageError("schema", f"{what!r} is not known", "allowed: recipe, report, plan")
    say(json.dumps(Model.model_json_schema(), indent=2, sort_keys=True))
