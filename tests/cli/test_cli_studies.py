"""A sweep's cells in trackers, and a study of kernels as it is typed."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hesscli.report.document import read_report
from hesscli.report.sweep import read_manifest, report_file

SMALL = ["data.limit=2", "data.max_length=16", "operator.params=['*norm*']", "output.plots=none"]
TRACE = ["checkpoint-trajectory", "probe=trace", *SMALL, "estimator.probes=2", "estimator.steps=2"]


class Tracker:
    """Stands for mlflow: keeps the metrics of each run by the id that it is tagged with."""

    def __init__(self):
        self.logged, self._run, self.times = {}, None, 0

    def __getattr__(self, name):
        return lambda *_, **__: None

    def search_runs(self, **_):
        return []

    def start_run(self, **_):
        return self

    def __enter__(self):
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def __exit__(self, *_):
        return None

    def set_tags(self, tags):
        self._run = tags["hess.run_id"]

    def log_metrics(self, metrics, step):
        self.times += 1
        self.logged[self._run] = (metrics, step)


@pytest.fixture
def tracker(monkeypatch):
    found = Tracker()
    found.__spec__ = object()
    monkeypatch.setitem(sys.modules, "mlflow", found)
    return found


def test_each_cell_is_logged_with_its_run_id_and_again_where_it_is_done(hess, tracker):
    path = Path(hess("sweep", *TRACE, "--log-to", "mlflow", "-q").out.strip()).absolute()
    manifest = read_manifest(path)
    reports = {cell.run_id: read_report(report_file(path, cell)) for cell in manifest.cells}
    assert len(reports) == 3
    assert set(tracker.logged) == set(reports)
    for run_id, (metrics, step) in tracker.logged.items():
        assert metrics["trace/value"] == reports[run_id].metrics["trace"].value
        assert step == {"step50": 50, "step200": 200}.get(reports[run_id].model.revision, 0)
    first = dict(tracker.logged)
    tracker.logged.clear()
    hess("sweep", *TRACE, "--log-to", "mlflow", "-q")  # nothing is measured
    assert tracker.logged == first


def test_a_tracker_that_fails_leaves_the_sweep_as_it_is(hess, tracker):
    def no_route(**_):
        raise OSError("no route")

    tracker.start_run = no_route
    ended = hess("sweep", *TRACE, "--log-to", "mlflow")
    assert ended.code == 0
    assert ended.err.count("--log-to mlflow: no route") == 3
    assert hess("sweep", *TRACE, "--log-to", "excel").code == 2


def test_cells_that_are_skipped_for_a_shard_are_not_logged(hess, tracker):
    hess("sweep", *TRACE, "--shard", "1/3", "--log-to", "mlflow", "-q")
    assert len(tracker.logged) == 1


@pytest.fixture
def kernels(hess):
    """A small study of two kernels: its manifest, and what it said."""
    budget = ["estimator.probes=2", "estimator.steps=6", "output.plots=[svg]", "matrix.density.kernel_width=[auto,2%]"]
    ended = hess("sweep", "fshp-kernel-width", *SMALL[:3], *budget, "--json")
    return json.loads(ended.out), ended.err


def test_kernels_are_drawn_from_one_measurement_and_that_is_no_warning(hess, kernels):
    manifest, said = kernels
    assert [cell["same_as"] for cell in manifest["cells"]] == [None, 0]
    assert "cell 2 of 2 is drawn from the measurement of density.kernel_width=auto" in said
    assert "warning: cell" not in said
    (report,) = Path("outputs/demo").glob("**/report.json")
    assert read_report(report).spectrum.kernel_width is None  # as its own recipe says
    assert "trend.svg" not in manifest["artifacts"]


def test_a_run_that_cells_share_is_logged_once(hess, tracker):
    budget = ["estimator.probes=2", "estimator.steps=6", "matrix.density.kernel_width=[auto,2%]"]
    assert hess("sweep", "fshp-kernel-width", *SMALL, *budget, "--log-to", "mlflow", "-q").code == 0
    assert (len(tracker.logged), tracker.times) == (1, 1)


def test_plot_does_not_belie_the_names_of_kernels_and_draws_other_sweeps_with_one(hess, kernels):
    (folder,) = Path("outputs/sweeps").iterdir()
    ended = hess("plot", str(folder), "--kernel-width", "1%")
    assert ended.code == 2
    assert "kernel_width: " in ended.err
    assert "one of its own for each cell" in ended.err
    budget = ["estimator.probes=2", "estimator.steps=6", "matrix.estimator.reorthogonalise=[full,none]"]
    other = Path(hess("sweep", "hessformer-reorthogonalisation", *SMALL, *budget, "-q").out.strip()).parent
    curves = []
    for width in ("auto", "1%"):
        assert hess("plot", str(other), "--kernel-width", width, "--plots", "svg", "-o", width).code == 0
        with Path(width, "overlay.csv").open() as file:
            curves.append([row["density_mean"] for row in csv.DictReader(file)])
    assert curves[0] != curves[1]
