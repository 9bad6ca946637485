"""What lies in an output folder: runs, sweeps, what was cut off, and what cannot be read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hesscli.errors import UsageError
from hesscli.report.document import read_report
from hesscli.report.schema import Report
from hesscli.report.sweep import FOLDER, MANIFEST, Manifest, read_manifest, report_file

REPORT = "report.json"
_UNFINISHED = ".part"  # the ending of the folder of a run that has not ended

# What a run was made for, in one figure.
_MAIN = {
    "density": "lambda_max",
    "topk": "lambda_max",
    "trace": "trace",
    "blockdiag": "relative_error",
    "solve": "quadratic_form",
}


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run's folder. Its report is None where it has none yet, or where `fault` says why it cannot be read."""

    folder: Path
    report: Report | None
    fault: str | None = None

    @property
    def status(self) -> str:
        """The status of the report, else `broken` or `unfinished`."""
        if self.report is not None:
            return self.report.status
        return "broken" if self.fault else "unfinished"


@dataclass(frozen=True, slots=True)
class FoundSweep:
    """A sweep's folder; its manifest is None where `fault` says why it cannot be read."""

    folder: Path
    manifest: Manifest | None
    fault: str | None = None


def runs_and_sweeps(root: Path) -> tuple[list[FoundRun], list[FoundSweep]]:
    """Return what lies below `root`, the newest first. Reads JSON alone, and follows no links.

    What cannot be read is returned with the reason, as one line.
    """
    runs: list[FoundRun] = []
    sweeps: list[FoundSweep] = []
    for folder, kind in _folders(root):
        if kind == MANIFEST:
            sweeps.append(_sweep(folder))
        elif kind == REPORT:
            runs.append(_run(folder))
        else:
            runs.append(FoundRun(folder, None))
    runs.sort(key=lambda run: (run.report.created if run.report else "", str(run.folder)), reverse=True)
    sweeps.sort(key=lambda sweep: (sweep.manifest.updated if sweep.manifest else "", str(sweep.folder)), reverse=True)
    return runs, sweeps


def main_figure(report: Report) -> str:
    """Return the name of the metric that the report's command is run for."""
    return _MAIN[report.command]


def reports_at(names: Sequence[str]) -> list[tuple[Path, Report]]:
    """Return the reports that are named: by a file, a run folder, or a sweep's folder, which stands for all its cells.

    A run that is named twice counts once. Raises UsageError, one line, where there is none.
    """
    files: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        for file in _cells(path) if sweep_at(path) else [path / REPORT if path.is_dir() else path]:
            files.setdefault(file.resolve(), file)
    return [(file, read_report(file)) for file in files.values()]


def sweep_at(path: Path) -> Path | None:
    """Return the manifest's file if `path` is one, or a sweep's folder."""
    file = path / MANIFEST if path.is_dir() else path
    return file if file.name == MANIFEST and file.is_file() else None


def _cells(path: Path) -> list[Path]:
    file = sweep_at(path)
    assert file is not None
    found = [report_file(file, cell) for cell in read_manifest(file).cells]
    reports = [report for report in found if report is not None and report.is_file()]
    if not reports:
        raise UsageError("sweep", f"{str(path)!r} has no finished cell", "run it first")
    return reports


def _folders(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield folders with a report, a manifest or an unfinished run, and look into none of these any further."""
    for place, folders, files in os.walk(root):
        folder = Path(place)
        if MANIFEST in files and folder.parent.name == FOLDER:
            yield folder, MANIFEST
        elif REPORT in files:
            yield folder, REPORT
        elif folder.name.endswith(_UNFINISHED):
            yield folder, _UNFINISHED
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            continue
        folders.clear()


def _run(folder: Path) -> FoundRun:
    try:
        return FoundRun(folder, read_report(folder / REPORT))
    except UsageError as error:
        return FoundRun(folder, None, f"{error.field}: {error.what}")


def _sweep(folder: Path) -> FoundSweep:
    try:
        return FoundSweep(folder, read_manifest(folder))
    except UsageError as error:
        return FoundSweep(folder, None, f"{error.field}: {error.what}")
