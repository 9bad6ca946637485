"""The verb that lists what was measured: ls. It reads JSON alone."""

import json as json_format
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from hesscli.cli.output import complain, result_console, say
from hesscli.errors import UsageError
from hesscli.recipe.schema import OutputSection

if TYPE_CHECKING:
    from rich.table import Table

    from hesscli.report.outputs import FoundRun, FoundSweep

_SCHEMA = "hess.ls/1"
_FOLDER = OutputSection().dir
_WIDE = 118  # columns that hold everything of a run in one line


def register(app: typer.Typer) -> None:
    """Put the verb on the app."""
    app.command("ls", help="List the runs and sweeps of an output folder, the newest first.")(_ls)


def _ls(
    folder: Annotated[
        str | None, typer.Argument(metavar="DIR", help=escape(f"output folder [{_FOLDER}]"), show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", metavar="", help="the list as JSON, nothing else")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", metavar="", help="the folders, one a line")] = False,
) -> None:
    from hesscli.report.outputs import runs_and_sweeps

    root = Path(folder or _FOLDER)
    if folder is not None and not root.is_dir():
        raise UsageError("DIR", f"{folder!r} is not a folder", "give an output folder")
    runs, sweeps = runs_and_sweeps(root)
    everything: list[FoundRun | FoundSweep] = [*sweeps, *runs]
    if json:
        content = {
            "schema": _SCHEMA,
            "folder": root.as_posix(),
            "runs": [_run(run, root) for run in runs],
            "sweeps": [_sweep(sweep, root) for sweep in sweeps],
        }
        say(json_format.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
    elif quiet:
        for found in everything:
            say(str(found.folder))
    elif not runs and not sweeps:
        complain(f"no runs in {str(root)!r}: `hess density demo` makes one")
    else:
        now = datetime.now(timezone.utc)
        tables = [_sweep_table(sweeps, root, now)] if sweeps else []
        console = result_console()
        with console.capture() as text:
            for table in [*tables, *([_run_table(runs, root, now, console.width)] if runs else [])]:
                console.print(table)
        say("\n".join(line.rstrip() for line in text.get().rstrip().splitlines()))
        for found in everything:
            if found.fault:
                complain(f"warning: {_short(found, root)}: {found.fault}")


def _run(run: "FoundRun", root: Path) -> dict[str, Any]:
    from hesscli.report.outputs import main_figure

    row: dict[str, Any] = {"folder": _short(run, root), "status": run.status, "fault": run.fault}
    if run.report is None:
        return row
    report, name = run.report, main_figure(run.report)
    metric = report.metrics.get(name)
    return row | {
        "run_id": report.run_id,
        "created": report.created,
        "model": report.model.id,
        "revision": report.model.revision,
        "probe": report.command,
        "operator": report.operator.kind,
        "dataset": report.data.id,
        "tokens": report.data.tokens,
        "verdict": report.verdict,
        "metric": name,
        "value": metric.value if metric else None,
        "ci": list(metric.ci) if metric and metric.ci else None,
        "seconds": report.seconds,
    }


def _sweep(sweep: "FoundSweep", root: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"folder": _short(sweep, root), "fault": sweep.fault}
    if (found := sweep.manifest) is None:
        return row
    counts = {status: found.count(status) for status in ("done", "failed", "missing", "skipped")}
    return row | {
        "name": found.name,
        "sweep_id": found.sweep_id,
        "updated": found.updated,
        "probe": found.probe,
        "cells": counts,
        "axes": {axis.key: axis.values for axis in found.axes},
    }


def _run_table(runs: list["FoundRun"], root: Path, now: datetime, width: int) -> "Table":
    from hesscli.report.interval import halfwidth
    from hesscli.report.outputs import main_figure
    from hesscli.report.rounding import with_error
    from hesscli.report.words import DASH, headline

    # The folder names model, revision and probe: in a narrow terminal that is enough.
    wide = width >= _WIDE
    gated = any(run.report and run.report.verdict for run in runs)
    names = [*(["model", "probe"] * wide), "status", *(["verdict"] * gated), "figure", "age", "folder"]
    table = _table(*names)
    for run in runs:
        cells = {"status": run.status.replace("_", " "), "folder": _short(run, root)}
        if (report := run.report) is not None:
            name = main_figure(report)
            metric = report.metrics.get(name)
            cells |= {"model": headline(report), "probe": f"{report.command} {report.operator.kind}"}
            cells |= {"verdict": report.verdict or DASH, "age": _age(report.created, now)}
            if metric is not None and metric.value is not None:
                half = halfwidth(metric)
                shown = with_error(metric.value, half) + ("" if half is not None else ", no interval")
                cells["figure"] = f"{name}{' ' if wide else chr(10)}{shown}"
        _row(table, *[cells.get(name, DASH) for name in names])
    return table


def _sweep_table(sweeps: list["FoundSweep"], root: Path, now: datetime) -> "Table":
    from hesscli.report.words import DASH

    table = _table("sweep", "probe", "cells", "over", "age", "folder")
    for sweep in sweeps:
        found = sweep.manifest
        if found is None:
            _row(table, DASH, DASH, "broken", DASH, DASH, _short(sweep, root))
            continue
        counts = {status: found.count(status) for status in ("done", "failed", "missing", "skipped")}
        cells = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        over = ", ".join(f"{axis.key} ({len(axis.values)})" for axis in found.axes)
        _row(table, found.name, found.probe, cells, over, _age(found.updated, now), _short(sweep, root))
    return table


def _table(*columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        whole = name in ("age", "verdict", "status", "figure")
        table.add_column(name, overflow="fold", no_wrap=whole)
    return table


def _row(table: "Table", *cells: str) -> None:
    from rich.text import Text

    table.add_row(*map(Text, cells))


def _short(found: "FoundRun | FoundSweep", root: Path) -> str:
    return found.folder.relative_to(root).as_posix()


def _age(created: str, now: datetime) -> str:
    """Return how long ago that was, in the largest unit that fits; what is no time is returned as it stands."""
    try:
        then = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    seconds = (now - (then if then.tzinfo else then.replace(tzinfo=timezone.utc))).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "now"
