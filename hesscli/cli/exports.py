"""The verbs that hand reports on: export to other programs, report as a page. They never import torch."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesscli.cli.output import complain, say
from hesscli.errors import UsageError
from hesscli.report.page.links import address

if TYPE_CHECKING:
    from hesscli.report.schema import Report

# As in hesscli.report.exporting, which is not imported for the help alone; a test holds them together.
_TEXTS = ("csv", "jsonl", "md", "junit", "prom")
_TRACKERS = ("tensorboard", "wandb", "mlflow")
_REPORTS = typer.Argument(metavar="REPORT...", help="report.json, run folder, or sweep folder", show_default=False)


def register(app: typer.Typer) -> None:
    """Put the verbs on the app."""
    app.command("export", help="Reports as CSV, JSON lines, Markdown, JUnit, Prometheus, or to a tracker.")(_export)
    app.command("report", help="One HTML file of a run or a sweep, that needs nothing else.")(_report)


def _export(
    reports: Annotated[list[str], _REPORTS],
    to: Annotated[
        str, typer.Option("--to", metavar="|".join((*_TEXTS, *_TRACKERS)), help="format", show_default=False)
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="file, in place of stdout")
    ] = None,
) -> None:
    from hesscli.report.outputs import reports_at

    if to not in (*_TEXTS, *_TRACKERS):
        raise UsageError("to", f"{to!r} is no format", f"allowed: {', '.join((*_TEXTS, *_TRACKERS))}")
    found = reports_at(reports)
    if to in _TRACKERS:
        _send(to, found, output)
        return
    from hesscli.report.exporting import TEXTS
    from hesscli.report.files import write_whole

    text = TEXTS[to]([report for _, report in found])
    if output is None:
        say(text.rstrip("\n"))
    else:
        write_whole(text, Path(output), field="output")
        say(output)


def _send(to: str, found: "list[tuple[Path, Report]]", output: str | None) -> None:
    from hesscli.report.exporting.trackers import check_tracker, send

    check_tracker(to)
    if output is not None:
        raise UsageError("output", f"{to} takes no file", "leave -o out")
    for path, report in found:
        with redirect_stdout(sys.stderr):  # trackers talk
            try:
                where = send(to, report, path.parent)
            except (Exception, SystemExit) as error:
                words = " ".join(str(error).split())[:200] or type(error).__name__
                raise UsageError("tracker", f"{to}: {words}", "see its own documentation") from error
        say(where)


def _report(
    run: Annotated[
        str, typer.Argument(metavar="RUN|SWEEP", help="run or sweep folder, or its JSON", show_default=False)
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="HTML file [report.html beside the JSON]")
    ] = None,
) -> None:
    from hesscli.report.files import write_whole
    from hesscli.report.outputs import REPORT, sweep_at

    path = Path(run)
    manifest = sweep_at(path)
    file = manifest or (path / REPORT if path.is_dir() else path)
    page = Path(output) if output is not None else file.with_name("report.html")
    if page.is_dir():
        raise UsageError("output", f"{output!r} is a folder", "give the path of a file")
    text = _sweep_page(file, page) if manifest else _run_page(file, page)
    write_whole(text, page, field="output")
    say(str(page))


def _run_page(file: Path, page: Path) -> str:
    from hesscli.report.document import read_report
    from hesscli.report.page.run import run_page

    report, recipe = read_report(file), file.with_name("recipe.yaml")
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None
    commands = {} if text is None else _commands(recipe)
    return run_page(report, recipe=text, commands=commands, files=_addresses(file.parent, page))


def _sweep_page(file: Path, page: Path) -> str:
    from hesscli.report.page.sweep import sweep_page
    from hesscli.report.sweep import read_manifest

    return sweep_page(read_manifest(file), file, page, files=_addresses(file.parent, page))


def _commands(recipe: Path) -> Mapping[str, str]:
    """Return what to type to measure the same again, as far as this version understands the recipe."""
    from hesscli.cli.replay import command_line, run_command

    try:
        return {
            "From the command line": command_line(recipe),
            "With the recipe, from where the run was started": run_command(recipe),
        }
    except UsageError as error:
        complain(f"warning: recipe.yaml: {error}")
        return {}


def _addresses(folder: Path, page: Path) -> Mapping[str, str]:
    """Return the files beside a report by name, each with its address as seen from the page.

    None for a page that lies elsewhere: it will be sent away, and its addresses would tell how folders here are called.
    """
    if page.absolute().parent not in (folder.absolute(), *folder.absolute().parents):
        return {}
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    others = [name for name in names if (folder / name).resolve() != page.resolve()]
    return {name: address(folder / name, page) for name in others}
