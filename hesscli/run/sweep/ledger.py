"""The manifest on disk while one or several processes fill it: each change is read, made and written under a lock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hesscli import __version__
from hesscli.errors import UsageError
from hesscli.report.sweep import FOLDER, MANIFEST, Cell, Manifest, read_manifest, write_manifest
from hesscli.run.storage.folder import OccupiedError, alone_in
from hesscli.run.sweep.plan import Plan

_LOCKS = ".locks"
_PATIENCE = 60.0  # seconds: a manifest is held for as long as it takes to write it


class Ledger:
    """The manifest of one sweep.

    Several processes may hold one each, on the same folder: none loses what another wrote.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.path = plan.folder / MANIFEST

    def open(self) -> None:
        """Make the folder and the manifest, or take what is there. Raises UsageError where neither can be."""
        try:
            (self.path.parent / _LOCKS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{str(self.path.parent)!r} cannot be written ({error.strerror or error})"
            raise UsageError("output.dir", what, "give another with -o") from error
        with self.held():
            for stale in self.path.parent.glob(f".{MANIFEST}.*.part"):  # of a process that was killed
                stale.unlink(missing_ok=True)
            if not self.path.exists():
                write_manifest(self._new(), self.path)

    def read(self) -> Manifest:
        """What is on disk now, or would be at the start. Raises UsageError where it is of something else."""
        if not self.path.exists():
            return self._new()
        manifest = read_manifest(self.path)
        if [cell.values for cell in manifest.cells] != [cell.values for cell in self._plan.cells]:
            raise UsageError("sweep", f"{self.path} has other cells", "remove it: what was measured is found again")
        return manifest

    def record(self, index: int, **changes: Any) -> Cell:
        """Change one cell, and return it as it stands now."""
        with self.changed() as manifest:
            cell = Cell.model_validate(manifest.cells[index].model_dump() | changes)
            manifest.cells[index] = cell
        return cell

    @contextmanager
    def changed(self) -> Iterator[Manifest]:
        """The manifest, to be changed inside the block and written at its end."""
        with self.held():
            manifest = self.read()
            yield manifest
            manifest.updated = _now()
            write_manifest(manifest, self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from the manifest, the tables and the figures; waits for them."""
        folder = self._lock("manifest")
        begun = time.monotonic()
        while True:
            try:
                with alone_in(folder):
                    yield
                    return
            except OccupiedError:
                if time.monotonic() - begun > _PATIENCE:
                    raise
            time.sleep(0.05)

    @contextmanager
    def claimed(self, index: int) -> Iterator[None]:
        """Keep other processes of this sweep from a cell. Raises OccupiedError where one has it."""
        with alone_in(self._lock(str(index))):
            yield

    def measured_elsewhere(self) -> dict[str, Cell]:
        """The done cells of other sweeps in this output folder, by their inputs; none of a broken manifest."""
        found: dict[str, Cell] = {}
        for path in sorted((self._plan.root / FOLDER).glob(f"*/{MANIFEST}")):
            if path == self.path:
                continue
            try:
                cells = read_manifest(path).cells
            except UsageError:
                continue
            found |= {cell.inputs: cell for cell in cells if cell.status == "done" and cell.inputs is not None}
        return found

    def _lock(self, name: str) -> Path:
        folder = self.path.parent / _LOCKS / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _new(self) -> Manifest:
        plan, now = self._plan, _now()
        return Manifest(
            name=plan.name,
            sweep_id=plan.sweep_id,
            probe=",".join(plan.probes),
            created=now,
            updated=now,
            axes=plan.axes,
            cells=[Cell(values=cell.values) for cell in plan.cells],
            environment={"hess": __version__},
        )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
