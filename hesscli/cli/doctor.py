"""The verb that examines this machine: doctor."""

import typer

from hesscli.cli.measuring import Json
from hesscli.cli.output import progress_console, result_console, say
from hesscli.errors import UntrustworthyError

_HELP = "Whether figures can be trusted on this machine: versions, devices, derivatives, products against dense truth."


def register(app: typer.Typer) -> None:
    """Put the verb on the app."""
    app.command("doctor", help=_HELP)(_doctor)


def _doctor(json: Json = False) -> None:
    from hesscli.report.document import dumps
    from hesscli.run.doctor.examine import examine
    from hesscli.run.doctor.table import render
    from hesscli.run.progress import ProgressListener

    with ProgressListener(progress_console(), quiet=json) as listener:
        found = examine(listener)
    if json:
        say(dumps(found).rstrip("\n"))
    else:
        console = result_console()
        with console.capture() as text:
            render(found, console)
        say("\n".join(row.rstrip() for row in text.get().rstrip().splitlines()))
    if found.verdict == "failed":
        failed = [trouble for trouble in found.troubles if trouble.failed]
        raise UntrustworthyError("doctor", f"{len(failed)} of the checks failed: {failed[0].text}", failed[0].remedy)
