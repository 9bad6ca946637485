"""The verbs that work from JSON alone: plot and schema. They never import torch."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hesscli.cli.output import say
from hesscli.errors import UsageError


def register(app: typer.Typer) -> None:
    """Put the verbs on the app."""
    app.command("plot", help="Draw the figures of reports again, from JSON alone.")(_plot)
    app.command("schema", help="The JSON schema of a recipe or a report.")(_schema)


def _plot(
    reports: Annotated[list[str], typer.Argument(metavar="REPORT...", help="report.json, or a run folder")],
    output_dir: Annotated[str | None, typer.Option("-o", "--output-dir", help="folder [the report's own]")] = None,
    plots: Annotated[str, typer.Option("--plots", metavar="png|svg", help="formats, comma separated")] = "png,svg",
) -> None:
    from hesscli.report.document import read_report
    from hesscli.report.figures import draw

    formats = [word.strip() for word in plots.split(",") if word.strip()]
    for name in reports:
        path = Path(name)
        path = path / "report.json" if path.is_dir() else path
        report = read_report(path)
        folder = Path(output_dir) if output_dir else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        names = draw(report, folder, formats)
        if not names:
            raise UsageError("report", f"{str(path)!r} holds nothing to draw", "plot a report of density or topk")
        for drawn in names:
            say(str(folder / drawn))


def _schema(what: Annotated[str, typer.Argument(metavar="recipe|report")]) -> None:
    if what == "recipe":
        from hesscli.recipe import Recipe as Model
    elif what == "report":
        from hesscli.report.schema import Report as Model  # type: ignore[assignment]
    else:
        raise UsageError("schema", f"{what!r} is not known", "allowed: recipe, report")
    say(json.dumps(Model.model_json_schema(), indent=2, sort_keys=True))
