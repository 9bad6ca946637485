"""The app, its exit codes, and errors in one line."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from hesscli import __version__
from hesscli.cli import doctor, exports, gates, launching, listing, measuring, planning, reports, sweeps
from hesscli.cli.output import complain, is_first, is_heard_again, nobody_hears, nobody_reads, say
from hesscli.cli.refusals import as_usage_error, is_refusal
from hesscli.errors import NO_ROOM, HessError, UsageError
from hesscli.recipe import PROBES

app = typer.Typer(
    name="hess",
    help="The curvature of a Hugging Face checkpoint, with an error beside every figure.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda t: t.replace("_", "-")},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHARED = (*PROBES, "run", "sweep")  # the verbs that processes do together
_WORD = 2.0  # seconds that it takes to say what is wrong


def _version(asked: bool) -> None:
    if asked:
        say(f"hess {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("-V", "--version", metavar="", help="show the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The curvature of a Hugging Face checkpoint, with an error beside every figure."""


measuring.register(app)
planning.register(app)
sweeps.register(app)
reports.register(app)
gates.register(app)
exports.register(app)
listing.register(app)
doctor.register(app)
launching.register(app)


class _Stopped(BaseException):
    """A signal arrived; unwinds like an interrupt, so that no half-written folder stays."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:  # a launcher says it again while this one ends; then it kills
        for again in _SIGNALS:
            signal.signal(again, signal.SIG_IGN)
    raise _Stopped(number)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that INTERFACE gives to what happened."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and `&` in a script ignore interrupts
            signal.signal(number, _stop)
    words = sys.argv[1:] if arguments is None else arguments
    if is_first():
        sys.exit(_exit_code(words))
    if next((word for word in words if not word.startswith("-")), None) not in _SHARED:
        sys.exit(0)  # what one process does, the first one does
    nobody_hears()
    code = _exit_code(words)
    time.sleep(_WORD if code else 0.0)  # torchrun ends all with the first that fails: let the one that speaks
    sys.exit(code)


def _exit_code(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        # What `command.main` does, without its own answers to interrupts and closed pipes.
        with command.make_context("hess", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except _Stopped as stop:
        is_heard_again()
        _decline(stop)
        return _ended(stop.number)
    except (BrokenPipeError, SystemExit):  # `hess ... | head`; the second is how the help's console says it
        nobody_reads()
        return 0
    except Exception as error:
        is_heard_again()
        return _failed(error, arguments, getattr(command, "commands", {}))


def _failed(error: Exception, arguments: list[str], commands: Mapping[str, Any]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # `hess` alone: some versions of the parser raise the help
        say(error.format_message())  # type: ignore[attr-defined]
        return 2
    if is_refusal(error):
        error = as_usage_error(error, arguments, commands)
    elif isinstance(error, OSError) and error.errno in NO_ROOM:  # of stdout too
        what = f"{error.filename or 'what was to be said'} cannot be written ({error.strerror})"
        error = UsageError("disk", what, "make room, or write elsewhere")
    _decline(error)
    if os.environ.get("HESS_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, HessError):
        if getattr(error, "interrupted", False):  # by a signal that another process had
            return _ended(error.exit_code - 128)
        complain(f"error: {error}")
        return error.exit_code
    complain(f"error: hess: {type(error).__name__}: {_one_line(str(error))}; this is a bug, HESS_DEBUG=1 shows where")
    return 1


def _ended(number: int) -> int:
    """Say that a signal ended the run, of this process or of another one; the exit code."""
    word = "interrupted" if number == signal.SIGINT else "terminated"
    complain(f"{word}: no report was written; the same command goes on from the products that are kept")
    return 128 + number


def _decline(error: BaseException) -> None:
    """Where processes of other machines may wait for this one, tell them that it will not come."""
    if int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1:
        from hesscli.distributed import decline

        with suppress(Exception):  # the error itself is what counts
            decline(error)


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
