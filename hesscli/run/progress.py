"""Progress on stderr: a bar with the time left on a terminal, a plain line every 30 seconds elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hesscli.events import Advanced, Event, Finished, Noted, Started, Warned

_EVERY = 30.0  # seconds between plain lines


class ProgressListener:
    """Listens to a run's events and shows them; warnings are shown whatever the verbosity.

    `verbose` has a line for each step in place of a bar.
    """

    def __init__(self, console: Console, *, quiet: bool, verbose: bool = False) -> None:
        self._console, self._quiet, self._every = console, quiet, 0.0 if verbose else _EVERY
        self._total: int | None = None
        self._unit, self._stage = "", ""
        self._begun = self._said = time.monotonic()
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if console.is_interactive and not quiet and not verbose:
            self._bar = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[detail]}"),
                console=console,
                transient=True,
            )

    def __enter__(self) -> "ProgressListener":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Warned):
            self._console.print(f"warning: {event.text}", style="yellow", markup=False, highlight=False)
        elif self._quiet:
            return
        elif isinstance(event, Noted):
            self._console.print(event.text, style="dim", markup=False, highlight=False)
        elif isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Advanced):
            self._advance(event)
        elif isinstance(event, Finished) and self._bar and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _start(self, event: Started) -> None:
        self._stage, self._total, self._unit = event.stage, event.total, event.unit
        self._begun = self._said = time.monotonic()
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(event.stage, total=event.total, detail="")

    def _advance(self, event: Advanced) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=event.done, detail=event.detail)
            return
        now = time.monotonic()
        if now - self._said < self._every or not event.done:
            return
        self._said = now
        total = f" of {self._total}" if self._total else ""
        left = ""
        if self._total:
            left = f", about {_minutes((now - self._begun) / event.done * (self._total - event.done))} left"
        detail = f" ({event.detail})" if event.detail else ""
        self._console.print(
            f"{event.stage}: {event.done}{total} {self._unit}{left}{detail}", markup=False, highlight=False
        )


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
