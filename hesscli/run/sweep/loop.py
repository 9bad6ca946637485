"""The cells of a sweep one after the other: each once, and none the end of the others."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesscli.distributed import in_turn
from hesscli.errors import HessError
from hesscli.events import Noted, OnEvent, Warned
from hesscli.report.schema import Report
from hesscli.report.sweep import Cell
from hesscli.run.session import Outcome, run
from hesscli.run.storage.folder import OccupiedError, check_writable
from hesscli.run.sweep.inputs import given
from hesscli.run.sweep.ledger import Ledger
from hesscli.run.sweep.lockstep import dismiss, ends_all, follow, with_others
from hesscli.run.sweep.memory import release
from hesscli.run.sweep.plan import Plan, label
from hesscli.run.sweep.prospect import Prospect, prospects, readable_report
from hesscli.run.sweep.results import Ending, Gating, write_results


def sweep(
    plan: Plan,
    *,
    shard: tuple[int, int],
    retry_failed: bool,
    gating: Gating | None,
    on_event: OnEvent,
    on_failure: Callable[[Exception], None],
    on_done: Callable[[Report, Path], None] = lambda _report, _folder: None,
) -> Ending | None:
    """Run the cells of a shard that are not done, then write tables and figures over all cells.

    Of several processes the first does so, and the others take part in its measurements: None is theirs.

    A cell that another process holds is skipped. A cell that fails is recorded with its error, and the next one runs;
    what interrupts the process interrupts the sweep, which goes on from there when it is started again. `on_failure`
    is told of each exception that a cell raised, and `on_done` of each report, as soon as it is there, and its folder:
    once, and of those that were there before too.

    Raises UsageError where the output folder or the manifest is of no use; of a cell's own errors, none. A process that
    is gone ends the sweep as what interrupts it.
    """
    with in_turn({"sweep": plan.folder.name}) as leads:
        if not leads:
            follow(on_event=on_event, on_failure=on_failure)
            return None
        ledger = _run_cells(plan, shard, retry_failed, on_event, on_failure, on_done)
        dismiss()
    return write_results(plan, ledger, shard=shard, gating=gating, on_event=on_event)


def _run_cells(
    plan: Plan,
    shard: tuple[int, int],
    retry_failed: bool,
    on_event: OnEvent,
    on_failure: Callable[[Exception], None],
    on_done: Callable[[Report, Path], None],
) -> Ledger:
    check_writable(plan.root)
    ledger = Ledger(plan)
    ledger.open()
    work = prospects(plan, shard=shard, retry_failed=retry_failed)
    left = sum(item.action == "run" for item in work)
    worker = _Worker(plan, ledger, retry_failed, on_event, on_failure, left)
    told: set[str] = set()
    for item in work:
        if item.action == "take":
            ledger.record(item.index, **_taken(item))
        elif item.action == "run":
            try:
                with ledger.claimed(item.index):
                    worker.run(item)
            except OccupiedError:
                on_event(Noted(f"cell {item.index + 1} of {len(plan.cells)}: another process is at it"))
                _skip(ledger, item.index)
            release()
        _tell(plan.root, ledger.read().cells[item.index], told, on_done)
    return ledger


@dataclass(slots=True)
class _Worker:
    """Runs cells that this process has claimed, and records what becomes of them."""

    plan: Plan
    ledger: Ledger
    retry_failed: bool
    on_event: OnEvent
    on_failure: Callable[[Exception], None]
    left: int
    seconds: list[float] = field(default_factory=list)
    """That the cells took which were measured, not found."""

    def run(self, item: Prospect) -> None:
        """Run one cell, unless another process has done so since the sweep began."""
        cells = self.ledger.read().cells
        cell = cells[item.index]
        if cell.status in ("missing", "skipped") or cell.status == item.cell.status:
            self._measure(item, cell, cells)
        self.left -= 1

    def _measure(self, item: Prospect, cell: Cell, cells: Sequence[Cell]) -> None:
        place = f"cell {item.index + 1} of {len(cells)}"
        self.on_event(Noted(f"{place}: {label(cell.values)}{self._time_left()}"))
        known = {run_id: folder for _, run_id, folder in _finished(self.plan.root, cells, but=item.index)}
        force = self._is_in_the_way(cell)
        recipe, begun = self.plan.cells[item.index].recipe, time.perf_counter()
        try:
            with with_others(recipe, force=force) as own:
                outcome = run(own, force=force, resume=True, on_event=self.on_event, known=known)
        except OccupiedError:
            raise
        except Exception as error:
            if ends_all(error):
                raise
            self.on_failure(error)
            self._fail(place, item, cell, error)
            return
        if outcome.fresh:
            self.seconds.append(time.perf_counter() - begun)
        changes = _measured(self.plan.root, cells, item, outcome)
        self.ledger.record(item.index, **changes)
        if changes["same_as"] is not None:
            first = label(cells[changes["same_as"]].values)
            if given(recipe) == given(self.plan.cells[changes["same_as"]].recipe):  # but for their pictures
                self.on_event(Noted(f"{place} is drawn from the measurement of {first}"))
                return
            what = f"{place} is the same measurement as {first}: equal weights, data and settings; measured once"
            self.on_event(Warned("same_measurement", what))

    def _is_in_the_way(self, cell: Cell) -> bool:
        """Whether a report is there that is broken, or that is not to be trusted and to be made again."""
        if cell.folder is None:
            return False
        file = self.plan.root / cell.folder / "report.json"
        broken = file.is_file() and readable_report(self.plan.root, cell) is None
        return broken or (self.retry_failed and cell.exit_code == 4)

    def _fail(self, place: str, item: Prospect, cell: Cell, error: Exception) -> None:
        code, text = _failure(error)
        if cell.status == "done" and item.inputs is None and readable_report(self.plan.root, cell) is not None:
            what = f"{place} is measured; whether its checkpoint and data are still the same cannot be told: {text}"
            self.on_event(Warned("cell_not_checked", what))
            return
        self.on_event(Warned("cell_failed", f"{place} failed: {text}"))
        failed = {"status": "failed", "error": text, "exit_code": code, "inputs": item.inputs}
        self.ledger.record(item.index, **(_BLANK | failed))

    def _time_left(self) -> str:
        if not self.seconds:
            return ""
        minutes, seconds = divmod(round(sum(self.seconds) / len(self.seconds) * self.left), 60)
        return f", about {minutes} min {seconds} s left" if minutes else f", about {seconds} s left"


# What a cell's record says where nothing else is said.
_BLANK: dict[str, Any] = Cell(values={}).model_dump(exclude={"values"})


def _taken(item: Prospect) -> dict[str, Any]:
    """What the record of a cell takes from that of another sweep's."""
    kept = item.cell.model_dump(include={"status", "report_status", "folder", "run_id", "seconds"})
    return _BLANK | kept | {"inputs": item.inputs}


def _measured(root: Path, cells: Sequence[Cell], item: Prospect, outcome: Outcome) -> dict[str, Any]:
    """What the record of a cell says after its run; an untrustworthy report is a failure, as it is of `hess run`."""
    report = outcome.report
    others = _finished(root, cells, but=item.index)
    changes = {
        "status": "done",
        "report_status": report.status,
        "folder": outcome.folder.relative_to(root).as_posix(),
        "run_id": report.run_id,
        "same_as": next((index for index, _, folder in others if folder == outcome.folder), None),
        "seconds": report.seconds,
        "inputs": item.inputs,
    }
    if report.status == "untrustworthy":
        text = _one_line(f"status: untrustworthy: {report.status_text}")
        changes |= {"status": "failed", "error": text, "exit_code": 4}
    return _BLANK | changes


def _finished(root: Path, cells: Sequence[Cell], *, but: int) -> Iterator[tuple[int, str, Path]]:
    """(index, run id, folder) of the other cells' own runs whose reports are there."""
    for index, cell in enumerate(cells):
        if cell.run_id is None or cell.folder is None or cell.same_as is not None or index == but:
            continue
        if (root / cell.folder / "report.json").is_file():
            yield index, cell.run_id, root / cell.folder


def _failure(error: Exception) -> tuple[int, str]:
    """Exit code and line, as the run by itself would end."""
    if isinstance(error, HessError):
        return error.exit_code, _one_line(str(error))
    return 1, f"hess: {type(error).__name__}: {_one_line(str(error))}; this is a bug, HESS_DEBUG=1 shows where"


def _tell(root: Path, cell: Cell, told: set[str], on_done: Callable[[Report, Path], None]) -> None:
    """Of a cell's report, unless it was another cell's too: that of a skipped cell is told by its own process."""
    report = None if cell.status == "skipped" else readable_report(root, cell)
    if report is not None and cell.folder is not None and report.run_id not in told:
        told.add(report.run_id)
        on_done(report, root / cell.folder)


def _skip(ledger: Ledger, index: int) -> None:
    with ledger.changed() as manifest:
        cell = manifest.cells[index]
        if cell.status == "missing":
            cell.status = "skipped"


def _one_line(text: str) -> str:
    return " ".join(text.split())
