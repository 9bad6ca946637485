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


def is_first() -> bool:
    """Whether this is the process that speaks, writes and judges: the only one, or the first of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) == 1 or os.environ.get("RANK", "0") == "0"


_kept: list[int] = []  # stderr, where this is the first process of a machine


def nobody_hears() -> None:
    """Of several processes one speaks, and this is another: what it says goes nowhere."""
    nobody_reads()
    if os.environ.get("LOCAL_RANK") == "0":
        _kept.append(os.dup(sys.stderr.fileno()))
    if os.environ.get("HESS_DEBUG") != "1":
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def is_heard_again() -> None:
    """What comes now is why this process ends: on each machine of several the first process says it."""
    while _kept:
        os.dup2(_kept.pop(), sys.stderr.fileno())


def nobody_reads() -> None:
    """The reader of stdout has left: what is still in its buffer goes nowhere, without a complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
