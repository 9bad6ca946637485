"""What a sweep would do with each cell, told before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hesscli.errors import HessError
from hesscli.report.document import read_report
from hesscli.report.schema import Report
from hesscli.report.sweep import Cell
from hesscli.run.sweep.inputs import cell_inputs
from hesscli.run.sweep.ledger import Ledger
from hesscli.run.sweep.plan import Plan, shard_indices


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a sweep would do with a cell that stands as `cell`: `run` it, `take` a finished run, or `leave` it."""

    index: int
    cell: Cell
    action: Literal["run", "take", "leave"]
    inputs: str | None


def prospects(plan: Plan, *, shard: tuple[int, int], retry_failed: bool) -> list[Prospect]:
    """What would become of the cells of a shard now; nothing is loaded and nothing is written."""
    ledger = Ledger(plan)
    cells, elsewhere = ledger.read().cells, ledger.measured_elsewhere()
    found = []
    for index in shard_indices(len(cells), shard=shard):
        inputs = cell_inputs(plan.cells[index].recipe)
        found.append(_prospect(plan.root, index, cells[index], inputs, elsewhere, retry_failed=retry_failed))
    return found


def _prospect(
    root: Path, index: int, cell: Cell, inputs: str | None, elsewhere: dict[str, Cell], *, retry_failed: bool
) -> Prospect:
    same = inputs is not None and cell.inputs == inputs
    if same and cell.status == "done" and readable_report(root, cell) is not None:
        return Prospect(index, cell, "leave", inputs)
    if cell.status == "failed" and not retry_failed and cell.inputs == inputs:
        return Prospect(index, cell, "leave", inputs)
    twin = elsewhere.get(inputs) if inputs is not None else None
    if twin is not None and readable_report(root, twin) is not None:
        return Prospect(index, twin.model_copy(update={"values": cell.values}), "take", inputs)
    return Prospect(index, cell, "run", inputs)


def readable_report(root: Path, cell: Cell) -> Report | None:
    """The report of a cell if it is there, can be read, and is of the run that the cell names."""
    if cell.folder is None:
        return None
    try:
        report = read_report(root / cell.folder / "report.json")
    except HessError:
        return None
    return report if report.run_id == cell.run_id else None
