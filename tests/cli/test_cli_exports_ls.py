"""hess ls: what lies in an output folder, from JSON alone."""

import json
from datetime import datetime, timedelta, timezone

import known_reports
import pytest

from hesscli.report.document import write_report
from hesscli.report.sweep import Cell, Manifest, write_manifest


def put(root, place, report):
    folder = root / place
    folder.mkdir(parents=True)
    write_report(report, folder / "report.json")


@pytest.fixture
def outputs(tmp_path):
    root, now = tmp_path / "outputs", datetime.now(timezone.utc)
    old = known_reports.density_report(created=(now - timedelta(days=3)).isoformat(), verdict="fail")
    new = known_reports.trace_report(2, created=(now - timedelta(minutes=5)).isoformat(), status="not_converged")
    put(root, "org__model-70m/step3000/density-7c1f09ab", old)
    put(root, "org__model-70m/main/trace-00000000", new)
    (root / "org__model-70m/main/topk-11111111.part/state").mkdir(parents=True)
    for place, text in (("broken", "{"), ("foreign", '{"schema": "other/1"}')):
        (root / place).mkdir()
        (root / place / "report.json").write_text(text)
    for name in ("good", "bad"):
        (root / "sweeps" / name).mkdir(parents=True)
    cells = [Cell(values={"seed": 1}, status="done"), Cell(values={"seed": 2}, status="failed", error="x: y; z")]
    manifest = Manifest(
        name="seeds", sweep_id="1", probe="topk", created=new.created, updated=new.created, axes=[], cells=cells
    )
    write_manifest(manifest, root / "sweeps" / "good" / "manifest.json")
    (root / "sweeps" / "bad" / "manifest.json").write_text("[]")
    return root


def test_ls_shows_runs_the_newest_first_with_their_main_figure(hess, outputs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    ended = hess("ls")
    assert ended.code == 0
    lines = ended.out.splitlines()
    trace = next(line for line in lines if "trace-00000000" in line)
    density = next(line for line in lines if "density-7c1f09ab" in line)
    assert lines.index(trace) < lines.index(density)
    for word in ("org/model-70m@step3000", "density hessian", "ok", "fail", "lambda_max 500.00 ± 0.90", "3 d"):
        assert word in density
    for word in ("trace hessian", "not converged", "trace 910 ± 60", "5 min"):
        assert word in trace
    assert "1 done, 1 failed" in ended.out
    assert max(map(len, lines)) <= 160


def test_ls_fits_a_narrow_terminal(hess, outputs):
    lines = hess("ls").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("500.00 ± 0.90" in line for line in lines)


def test_ls_lists_what_is_broken_and_what_is_not_finished(hess, outputs):
    ended = hess("ls", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found["schema"] == "hess.ls/1"
    runs = {run["folder"]: run for run in found["runs"]}
    assert {place: run["status"] for place, run in runs.items()} == {
        "org__model-70m/main/trace-00000000": "not_converged",
        "org__model-70m/step3000/density-7c1f09ab": "ok",
        "org__model-70m/main/topk-11111111.part": "unfinished",
        "broken": "broken",
        "foreign": "broken",
    }
    assert "schema 'other/1'" in runs["foreign"]["fault"]
    density = runs["org__model-70m/step3000/density-7c1f09ab"]
    assert (density["metric"], density["value"], density["ci"]) == ("lambda_max", 500.0, [499.1, 500.9])
    sweeps = {sweep["folder"]: sweep for sweep in found["sweeps"]}
    assert sweeps["sweeps/good"]["cells"] == {"done": 1, "failed": 1, "missing": 0, "skipped": 0}
    assert sweeps["sweeps/bad"]["fault"]
    table = hess("ls")
    assert table.code == 0
    assert table.err.count("warning: ") == 3


def test_ls_quiet_says_folders_that_other_verbs_take(hess, outputs):
    for folder in hess("ls", outputs / "org__model-70m", "-q").out.split():
        if not folder.endswith(".part"):
            assert hess("export", folder, "--to", "md").code == 0


def test_ls_of_nothing_says_so_and_of_no_folder_is_an_error(hess, tmp_path):
    ended = hess("ls")
    assert (ended.code, ended.out) == (0, "")
    assert "no runs in 'outputs'" in ended.err
    refused = hess("ls", "elsewhere")
    assert (refused.code, refused.err) == (2, "error: DIR: 'elsewhere' is not a folder; give an output folder\n")
