"""The verbs that work from JSON alone: plot and schema. They never import torch."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hesscli.cli.output import say
from hesscli.errors import UsageError


def register(app: typer.Typer) -> None:
    """Put the verbs on the app."""
    app.command("plot", help="Draw the figures of reports again, from JSON alone.")(_plot)
    app.command("schema", help="The JSON schema of a recipe or a report.")(_schema)


def _plot(
    reports: Annotated[
        list[str], typer.Argument(metavar="REPORT", help="report.json, or a run folder", show_default=False)
    ],
    output_dir: Annotated[
        str | None, typer.Option("-o", "--output-dir", metavar="DIR", help=escape("folder [the report's own]"))
    ] = None,
    plots: Annotated[
        str, typer.Option("--plots", metavar="LIST", help=escape("formats [png,svg]"), show_default=False)
    ] = "png,svg",
) -> None:
    from hesscli.report.document import read_report
    from hesscli.report.figures import draw

    formats = [word.strip() for word in plots.split(",") if word.strip()]
    if not formats or formats == ["none"]:
        raise UsageError("plots", f"{plots!r} names no format", "choose from png, svg")
    for name in reports:
        path = Path(name)
        path = path / "report.json" if path.is_dir() else path
        report = read_report(path)
        folder = Path(output_dir) if output_dir else path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = draw(report, folder, formats)
        except OSError as error:
            what = f"{str(folder)!r} cannot be written ({error.strerror or error})"
            raise UsageError("output_dir", what, "give another with -o") from error
        if not names:
            raise UsageError("report", f"{name!r} holds nothing to draw (status: {report.status})", "measure again")
        for drawn in names:
            say(str(folder / drawn))


def _schema(what: Annotated[str, typer.Argument(metavar="recipe|report", show_default=False)]) -> None:
    if what == "recipe":
        from hesscli.recipe import Recipe as Model
    elif what == "report":
        from hesscli.report.schema import Report as Model  # type: ignore[assignment]
    else:
        raise UsageError("schema", f"{what!r} is not known", "allowed: recipe, report")
    say(json.dumps(Model.model_json_schema(), indent=2, sort_keys=True))
