"""Finished runs in experiment trackers: what goes wrong there is a warning, and changes nothing of the run."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from hesscli.errors import UsageError
from hesscli.events import Noted, OnEvent, Warned
from hesscli.report.exporting.trackers import TRACKERS, check_tracker, send
from hesscli.report.schema import Report


def usable(names: Sequence[str], *, on_event: OnEvent) -> list[str]:
    """Return those of the trackers that are installed, each once, and warn of the others: before a run, not after it.

    Raises UsageError where hess knows no such tracker.
    """
    unknown = next((name for name in names if name not in TRACKERS), None)
    if unknown is not None:
        raise UsageError("log_to", f"{unknown!r} is not a tracker", f"allowed: {', '.join(TRACKERS)}")
    found = []
    for name in dict.fromkeys(names):
        try:
            check_tracker(name)
        except UsageError as error:
            on_event(Warned("tracker", f"--log-to: {error.what}, nothing is logged there; {error.remedy}"))
        else:
            found.append(name)
    return found


def track(names: Sequence[str], report: Report, folder: Path, *, on_event: OnEvent) -> None:
    """Send a finished report to each tracker. Whatever it raises becomes a warning; what it prints goes to stderr."""
    for name in names:
        try:
            with redirect_stdout(sys.stderr):
                where = send(name, report, folder)
        except (Exception, SystemExit) as error:
            words = " ".join(str(error).split())[:200] or type(error).__name__
            on_event(Warned("tracker", f"--log-to {name}: {words}; the run is not there, its report is unchanged"))
        else:
            on_event(Noted(f"logged to {name}: {where}"))
