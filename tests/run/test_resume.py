"""A run that is killed at any moment goes on where it was, and ends with the same report."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hesscli.curvature.double_backward import HessianOperator
from hesscli.errors import UsageError
from hesscli.recipe.document import resolve
from hesscli.run.session import run
from hesscli.run.storage.folder import part_folder
from hesscli.run.storage.product_log import ProductLog

pytestmark = pytest.mark.usefixtures("small_demo")
SMALL = {
    "model.id": "demo",
    "data.limit": 2,
    "data.max_length": 24,
    "operator.params": ["*layers.0*"],
    "output.plots": "none",
}
PROBES = {
    "topk": {"estimator.k": 2, "estimator.steps": 12},
    "density": {"estimator.probes": 2, "estimator.steps": 5},
    "trace": {"estimator.probes": 4, "estimator.steps": 4},
    "blockdiag": {"estimator.probes": 2, "operator.by": "module"},
    "solve": {"estimator.steps": 12, "operator.kind": "ggn"},
}


def recipe(probe, folder, **more):
    return resolve([("test", {"probe": probe, "output.dir": str(folder), **SMALL, **PROBES[probe], **more})])[0]


def measured(probe, folder, **more):
    return run(recipe(probe, folder, **more), force=False, resume=True, on_event=lambda _event: None)


def without_times(path):
    report = json.loads(Path(path).read_text())
    for key in ("created", "seconds"):
        del report[key]
    for key in ("seconds_per_matvec", "gradient_seconds", "peak_bytes"):
        del report["cost"][key]
    del report["operator"]["why"]  # holds the memory that was free
    return report


class Cut(BaseException):
    pass


def cut_off_after(count, probe, folder, monkeypatch, **more):
    """A run that ends, as a signal would end it, when so many requests have been logged."""
    add, left = ProductLog.add, [count]

    def counted(self, vs, products, memory):
        add(self, vs, products, memory)
        left[0] -= 1
        if left[0] == 0:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(ProductLog, "add", counted)
        with pytest.raises(Cut):
            measured(probe, folder, **more)


@pytest.mark.parametrize(
    ("probe", "product"), [*((p, "auto") for p in PROBES), ("density", "layered"), ("topk", "finite-difference")]
)
def test_a_run_that_was_cut_off_ends_with_the_same_report(probe, product, tmp_path, monkeypatch):
    more = {"operator.product": product}
    whole = measured(probe, tmp_path / "whole", **more)
    for count in (2, 5, 3):  # each of three attempts comes a little further
        cut_off_after(count, probe, tmp_path / "cut", monkeypatch, **more)
    resumed = measured(probe, tmp_path / "cut", **more)
    assert resumed.folder.name == whole.folder.name
    assert without_times(resumed.folder / "report.json") == without_times(whole.folder / "report.json")
    assert not (resumed.folder / "state").exists()
    assert not resumed.folder.with_name(resumed.folder.name + ".part").exists()


def test_products_are_not_made_again(tmp_path, monkeypatch):
    many = {"data.limit": 8}  # more rows than checks repeat in float32 and float64
    cut_off_after(9, "topk", tmp_path, monkeypatch, **many)
    made, original = Counter(), HessianOperator.matvecs

    def counted(self, vs):
        made[self.risk.num_terms] += len(vs)
        return original(self, vs)

    monkeypatch.setattr(HessianOperator, "matvecs", counted)
    report = measured("topk", tmp_path, **many).report
    beside = 1  # the choice of the product; checks on a few short rows have fewer terms
    assert made[max(made)] <= report.cost.matvecs - 9 + beside


@pytest.mark.parametrize("damage", ["cut short", "emptied", "another vector's"])
def test_a_damaged_log_is_used_as_far_as_it_is_good(damage, tmp_path, monkeypatch):
    whole = measured("trace", tmp_path / "whole")
    cut_off_after(8, "trace", tmp_path / "cut", monkeypatch)
    (state,) = (tmp_path / "cut").glob("*/*/*.part/state")
    file = state / "000005.safetensors"
    if damage == "another vector's":
        file.write_bytes((state / "000006.safetensors").read_bytes())
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "emptied" else -100])
    resumed = measured("trace", tmp_path / "cut")
    assert without_times(resumed.folder / "report.json") == without_times(whole.folder / "report.json")


def test_without_resume_nothing_is_kept_and_nothing_is_used(tmp_path, monkeypatch):
    cut_off_after(4, "trace", tmp_path, monkeypatch)
    events = []
    run(recipe("trace", tmp_path), force=False, resume=False, on_event=events.append)
    assert not any("cut off" in str(event) for event in events)
    assert not list(tmp_path.glob("*/*/*.part"))


def test_two_processes_do_not_write_one_run(tmp_path):
    with (
        part_folder(tmp_path / "run", resume=True),
        pytest.raises(UsageError, match="another process"),
        part_folder(tmp_path / "run", resume=True),
    ):
        pass
    assert (tmp_path / "run").is_dir()


def test_a_failure_before_the_first_product_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no"), part_folder(tmp_path / "a" / "run", resume=True):
        raise ValueError("no")
    assert not list((tmp_path / "a").iterdir())


_FORKS = """
import os, random, signal, sys, time
from pathlib import Path
import hesscli.demo
from run.test_resume import measured
hesscli.demo._FOLDER, home = Path(sys.argv[1]), sys.argv[2]
moments = random.Random(0)
for probe in ("density", "topk"):
    measured(probe, home + "/whole-" + probe)
    start = time.perf_counter()
    measured(probe, home + "/again-" + probe)  # with all imported
    longest = time.perf_counter() - start
    folder, kills, runs = home + "/killed-" + probe, 0, 0
    while kills < 12:
        child = os.fork()
        if child == 0:
            measured(probe, folder + str(runs))
            os._exit(0)
        time.sleep(moments.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            kills += 1
        else:  # it came to its end: kills of another one
            assert status == 0
            runs += 1
    measured(probe, folder + str(runs))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_a_dozen_random_moments_it_ends_with_the_same_report(small_demo, tmp_path):
    """Of density and of topk: one interpreter starts all, for the start of one is as long as many runs."""
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (tests, tests.parent)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", _FORKS, str(small_demo), str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    for probe in ("density", "topk"):
        (whole,) = tmp_path.glob(f"whole-{probe}/*/*/*/report.json")
        reports = list(tmp_path.glob(f"killed-{probe}*/*/*/*/report.json"))
        assert reports
        assert len(reports) == len(list(tmp_path.glob(f"killed-{probe}*")))
        for report in reports:
            assert without_times(report) == without_times(whole)
