"""A sweep that is killed goes on with the cells that it lacks, and two shards at once make its tables."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hesscli.cli.app import _exit_code
from hesscli.report.sweep import read_manifest
from hesscli.run.sweep import loop

TABLES = ("results.csv", "results.jsonl", "results.md")
RECIPE = """
schema: hess.recipe/1
name: killed
probe: trace
data: {id: slice.jsonl, limit: 2, max_length: 16}
operator: {params: ["*layers.0*"]}
estimator: {probes: 4, steps: 4}
output: {plots: none}
matrix:
  model.id: [checkpoints/step50, checkpoints/step200, checkpoints/final]
  operator.kind: [hessian, ggn]
exclude: [{operator.kind: ggn, model.id: checkpoints/step50}]
"""


@pytest.mark.slow
def test_killed_in_the_middle_only_the_missing_cells_run_and_then_none(small_demo, tmp_path, monkeypatch, capfd):
    (tmp_path / "killed.yaml").write_text(RECIPE)
    for name in ("checkpoints", "slice.jsonl"):  # the first process knows of no other demo
        (tmp_path / name).symlink_to(small_demo / name)
    monkeypatch.chdir(tmp_path)

    def begun(*words):
        command = [sys.executable, "-m", "hesscli", "sweep", "killed.yaml", "-q", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[3])}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ended(*words):
        """The same in this process, which has all imported: its exit code, and the cells that it ran."""
        capfd.readouterr()
        code = _exit_code(["sweep", "killed.yaml", *words])
        lines = capfd.readouterr().err.splitlines()
        return code, [line.split(" of ")[0] for line in lines if line.startswith("cell ")]

    def manifest():
        return read_manifest(next((tmp_path / "out").glob("sweeps/*/manifest.json")))

    process = begun("-o", "out")
    for _ in range(6000):
        time.sleep(0.02)
        if list((tmp_path / "out").glob("sweeps/*/manifest.json")) and manifest().count("done") >= 2:
            break
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = manifest()
    assert 2 <= done.count("done") < 5
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/*/*/report.json")}
    assert len(files) >= 2

    missing = [f"cell {i + 1}" for i, cell in enumerate(done.cells) if cell.status != "done"]
    assert ended("-o", "out") == (0, missing)
    assert manifest().count("done") == len(manifest().cells) == 5
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert ended("-o", "out") == (0, [])
    tables = {name: next((tmp_path / "out").glob(f"sweeps/*/{name}")).read_bytes() for name in TABLES}

    other = begun("-o", "shards", "--shard", "1/2")
    assert ended("-o", "shards", "--shard", "2/2")[0] == 0
    assert other.wait() == 0
    assert {n: next((tmp_path / "shards").glob(f"sweeps/*/{n}")).read_bytes() for n in TABLES} == tables
