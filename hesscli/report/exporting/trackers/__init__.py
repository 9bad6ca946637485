"""Reports in experiment trackers, each through its own library, which is imported here and nowhere else.

The libraries are extras: none is needed to measure, and two of them are larger than hess.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from hesscli.errors import UsageError
from hesscli.report.schema import Report

Send = Callable[[Report, Path], str]

# The module with `send(report, folder)` for each tracker; it is called as its library is.
TRACKERS = {"tensorboard": "tensorboard_log", "wandb": "wandb_run", "mlflow": "mlflow_run"}


def check_tracker(name: str) -> None:
    """Raise UsageError if hess knows no such tracker, or if its library is not installed."""
    if name not in TRACKERS:
        raise UsageError("tracker", f"{name!r} is not known", f"allowed: {', '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise UsageError("tracker", f"{name} is not installed", f"pip install 'hess[{name}]'")


def send(name: str, report: Report, folder: Path) -> str:
    """Hand the report to the tracker and return where it can be seen.

    `folder` is the run's, whose figures go along; tensorboard's file is written into it. Sent again, a run replaces
    itself. Raises UsageError as `check_tracker` does, and whatever the tracker's library raises.
    """
    check_tracker(name)
    module = import_module(f"hesscli.report.exporting.trackers.{TRACKERS[name]}")
    go: Send = module.send
    return go(report, folder)
