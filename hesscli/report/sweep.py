"""The manifest of a sweep: its cells, what became of each, and where their reports lie.

From it and the reports, every table and figure of the sweep can be made again.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from hesscli.report.document import dumps, read_object, read_report, validated
from hesscli.report.files import write_whole
from hesscli.report.schema import Part, Report, Verdict

SCHEMA: Literal["hess.sweep/1"] = "hess.sweep/1"
MANIFEST = "manifest.json"
FOLDER = "sweeps"  # below the output folder, one folder a sweep in it

CellStatus = Literal["done", "failed", "missing", "skipped"]


class Cell(Part):
    """One run of a sweep."""

    values: dict[str, Any]
    """What sets this cell apart from the others: value by dotted path, such as `{"model.revision": "step50"}`."""
    status: CellStatus = "missing"
    """`done`: its report is there. `failed`: `error` says why, and it is tried again with --retry-failed alone.
    `missing`: not run yet. `skipped`: another process was at it."""
    report_status: Literal["ok", "not_converged", "untrustworthy"] | None = None
    """The status of its report, where there is one; an untrustworthy one is a failed cell with exit code 4."""
    folder: str | None = None
    """The run folder, relative to the output folder, with `/` between its parts; see `report_file`."""
    run_id: str | None = None
    same_as: int | None = None
    """The index of the cell whose run this is, where what both measure is the same; it was measured once."""
    error: str | None = None
    """One line, as the run by itself would print it after `error: `."""
    exit_code: int | None = None
    """That the run by itself would have ended with, for a failed cell."""
    seconds: float | None = None
    """That the run took, when it was measured."""
    verdict: Verdict | None = None
    """Of the gates on its report; None where nothing was asserted."""
    inputs: str | None = None
    """A hash of the recipe and of the sizes and times of its files, or the commits: what is the same need not be loaded
    to be known for done."""


class Axis(Part):
    """One key that the cells differ in."""

    key: str
    values: list[Any]
    """In natural order of revisions: step2 before step10."""


class Manifest(Part):
    """A sweep, in `OUTPUT/sweeps/NAME-HASH/manifest.json`. The hash is over the recipes of its cells."""

    schema_: Annotated[Literal["hess.sweep/1"], Field(alias="schema")] = SCHEMA
    name: str
    sweep_id: str
    probe: str
    """The probe, or several with commas where cells differ in it."""
    created: str
    updated: str
    axes: list[Axis]
    cells: list[Cell]
    artifacts: list[str] = Field(default_factory=list)
    """Tables and figures beside the manifest."""
    environment: dict[str, str] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)

    def count(self, status: CellStatus) -> int:
        """How many cells have this status."""
        return sum(cell.status == status for cell in self.cells)


def read_manifest(path: str | Path) -> Manifest:
    """The manifest in a file, or in a sweep's folder; every fault is a `UsageError` of one line."""
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    field = f"sweep {path.parent.name}"
    content = read_object(path, field=field, name=MANIFEST, version=SCHEMA, remedy="run the sweep again")
    return validated(content, Manifest, field=field, remedy="run the sweep again")


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the manifest: readers see the old file or the whole new one, never a part."""
    write_whole(dumps(manifest), path, field="sweep")


def report_file(manifest_path: Path, cell: Cell) -> Path | None:
    """Where the report of a cell lies, None where it has none; `manifest_path` is the manifest's file."""
    if cell.folder is None:
        return None
    return manifest_path.absolute().parents[2] / cell.folder / "report.json"


def read_cells(manifest_path: Path, manifest: Manifest) -> list[tuple[Cell, Report | None]]:
    """Each cell with its report, None where it has none; a report that cannot be read is a `UsageError`."""
    files = [(cell, report_file(manifest_path, cell)) for cell in manifest.cells]
    return [(cell, None if file is None else read_report(file)) for cell, file in files]
