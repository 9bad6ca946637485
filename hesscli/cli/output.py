"""The streams: the result to stdout, everything else to stderr."""

import os
import sys

from rich.console import Console


def progress_console() -> Console:
    """Stderr. No colour where NO_COLOR is set or it is not a terminal; no bar where CI is set."""
    return Console(stderr=True, soft_wrap=True, force_interactive=False if os.environ.get("CI") else None)


def result_console() -> Console:
    """Stdout. Piped, it is COLUMNS or 80 wide and without colour."""
    if sys.stdout.isatty():
        return Console()
    return Console(width=int(os.environ.get("COLUMNS", "") or 80) if os.environ.get("COLUMNS", "80").isdigit() else 80)


def say(text: str) -> None:
    """A line of the result."""
    print(text)


def complain(text: str) -> None:
    """A line that is not the result."""
    print(text, file=sys.stderr)


def nobody_hears() -> None:
    """Of several processes one speaks, and this is another: what it says goes nowhere."""
    nobody_reads()
    if os.environ.get("HESS_DEBUG") != "1":
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def nobody_reads() -> None:
    """The reader of stdout has left: what is still in its buffer goes nowhere, without a complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
