"""The app, its exit codes, and errors in one line."""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, NoReturn

import typer

from hesscli import __version__
from hesscli.cli import measuring, reports
from hesscli.cli.output import complain, say
from hesscli.errors import HessError

app = typer.Typer(
    name="hess",
    help="The curvature of a Hugging Face checkpoint, with an error beside every figure.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda t: t.replace("_", "-")},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        say(f"hess {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("-V", "--version", help="show the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The curvature of a Hugging Face checkpoint, with an error beside every figure."""


measuring.register(app)
reports.register(app)


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like an interrupt, so that no half-written folder stays."""


def _on_sigterm(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that INTERFACE gives to what happened."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(_exit_code(sys.argv[1:] if arguments is None else arguments))


def _exit_code(arguments: list[str]) -> int:
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="hess", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except HessError as error:
        _show(error)
        complain(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted: nothing was written; the same command starts again")
        return 130
    except _Terminated:
        complain("terminated: nothing was written; the same command starts again")
        return 143
    except BrokenPipeError:  # `hess ... | head`: nobody is left to tell
        sys.stderr.close()
        return 0
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own: unknown option, missing argument
            if type(error).__name__ == "NoArgsIsHelpError":
                say(error.format_message())
                return 2
            complain(f"error: {_one_line(error.format_message())}; see hess --help")
            return 2
        _show(error)
        complain(
            f"error: hess: {type(error).__name__}: {_one_line(str(error))}; this is a bug, HESS_DEBUG=1 shows where"
        )
        return 1


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _show(error: Exception) -> None:
    if os.environ.get("HESS_DEBUG") == "1":
        traceback.print_exception(error)
