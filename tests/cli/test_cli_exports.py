"""export, report and --log-to, as they are typed."""

import csv
import io
import json
import shlex
import sys
from types import ModuleType, SimpleNamespace

import known_reports
import pytest
import yaml

from hesscli.report.document import write_report
from hesscli.report.sweep import Axis, Cell, Manifest, write_manifest


@pytest.fixture
def outputs(tmp_path):
    """Two runs and a sweep over them, as a measurement leaves them."""
    root = tmp_path / "outputs"
    cells = []
    for revision in ("step2", "step10"):
        report = known_reports.trace_report(2, run_id=revision)
        report.model.revision = revision
        folder = root / "org__m" / revision / f"trace-{revision}"
        folder.mkdir(parents=True)
        write_report(report, folder / "report.json")
        place = folder.relative_to(root).as_posix()
        cells.append(Cell(values={"model.revision": revision}, status="done", report_status="ok", folder=place))
    file = root / "sweeps" / "steps-12" / "manifest.json"
    file.parent.mkdir(parents=True)
    manifest = Manifest(
        name="steps",
        sweep_id="12",
        probe="trace",
        created="2026-01-02T03:04:05Z",
        updated="2026-01-02T03:05:05Z",
        axes=[Axis(key="model.revision", values=["step2", "step10", "step20"])],
        cells=[*cells, Cell(values={"model.revision": "step20"})],
    )
    write_manifest(manifest, file)
    return root


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_export_takes_files_run_folders_and_sweeps_and_each_run_once(hess, outputs):
    run = outputs / "org__m" / "step2" / "trace-step2"
    one = hess("export", run, "--to", "csv")
    assert one.code == 0
    assert {row["revision"] for row in rows(one.out)} == {"step2"}
    all_ = hess("export", run / "report.json", outputs / "sweeps" / "steps-12", run, "--to", "csv")
    assert [row["revision"] for row in rows(all_.out) if row["metric"] == "frobenius_norm"] == ["step2", "step10"]


def test_export_writes_a_file_whole_and_says_which(hess, outputs, tmp_path):
    target = tmp_path / "hess.prom"
    target.write_text("older")
    ended = hess("export", outputs / "sweeps" / "steps-12", "--to", "prom", "-o", target)
    assert (ended.code, ended.out, ended.err) == (0, f"{target}\n", "")
    assert 'hess_trace{model="org/model-70m",revision="step10"' in target.read_text()
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "excel"], "to: 'excel' is no format; allowed: csv, jsonl"),
        (["--to", "csv", "-o", "no/such/x.csv"], "output: x.csv cannot be written"),
        (["--to", "wandb"], "tracker: wandb is not installed; pip install 'hess[wandb]'"),
    ],
)
def test_what_export_cannot_do_is_one_line_and_exit_2(words, said, hess, outputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    ended = hess("export", outputs / "org__m" / "step2" / "trace-step2", *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {said}")
    assert ended.err.count("\n") == 1


def test_report_writes_a_page_beside_the_run_with_what_to_type(hess, outputs):
    run = outputs / "org__m" / "step2" / "trace-step2"
    recipe = {"probe": "trace", "model": {"id": "org/m", "revision": "step2"}, "data": {"limit": 3, "pack": False}}
    recipe["estimator"] = {"probes": 16, "steps": 9}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run / "trace.csv").write_text("")
    ended = hess("report", run)
    assert (ended.code, ended.out, ended.err) == (0, f"{run / 'report.html'}\n", "")
    text = (run / "report.html").read_text()
    assert "hess trace org/m@step2 --limit 3 --no-pack --steps 9</code>" in text
    assert "hess run outputs/org__m/step2/trace-step2/recipe.yaml</code>" in text
    assert '<a href="./trace.csv">' in text
    assert str(outputs) not in text
    assert hess("report", run / "report.json").out == ended.out
    assert "report.html</a>" not in (run / "report.html").read_text()


def test_the_command_line_of_a_recipe_gives_that_recipe(hess, tmp_path):
    words = (
        "topk org/m --dtype bfloat16 --max-memory 0=4GiB,cpu=8GiB --dataset rows.jsonl --limit 3 --batch-size 2 "
        "--params 'model.*' --params lm_head --k 3 --which largest --basis host --seed 7"
    )
    given = hess(*shlex.split(words), "--print-config").out
    (tmp_path / "recipe.yaml").write_text(given)
    from hesscli.cli.replay import command_line

    typed = shlex.split(command_line(tmp_path / "recipe.yaml"))
    assert typed[:3] == ["hess", "topk", "org/m"]
    again = hess(*typed[1:], "--print-config").out
    assert yaml.safe_load(again) == yaml.safe_load(given)


def test_a_recipe_that_is_not_understood_costs_the_command_and_not_the_page(hess, outputs):
    run = outputs / "org__m" / "step2" / "trace-step2"
    (run / "recipe.yaml").write_text("probe: trace\nof_tomorrow: 1\n")
    ended = hess("report", run)
    assert ended.code == 0
    assert ended.err.startswith("warning: recipe.yaml: of_tomorrow: no such key")
    text = (run / "report.html").read_text()
    assert "of_tomorrow: 1" in text
    assert "hess run" not in text


def test_report_of_a_sweep_links_to_its_runs_unless_it_is_written_elsewhere(hess, outputs, tmp_path):
    sweep = outputs / "sweeps" / "steps-12"
    assert hess("report", sweep).out == f"{sweep / 'report.html'}\n"
    assert "../../org__m/step10/trace-step10/report.json" in (sweep / "report.html").read_text()
    away = tmp_path / "elsewhere" / "page.html"
    away.parent.mkdir()
    assert hess("report", sweep, "-o", away).code == 0
    assert "org__m/step10" not in away.read_text()


@pytest.mark.parametrize("words", [["no-such-run"], ["outputs"], ["outputs/org__m/step2/trace-step2", "-o", "outputs"]])
def test_what_report_cannot_do_is_one_line_and_exit_2(words, hess, outputs):
    ended = hess("report", *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


class Tracker(ModuleType):
    """A tracker that talks on stdout, and then fails or not."""

    def __init__(self, fault):
        super().__init__("mlflow")
        self.__spec__ = SimpleNamespace(name="mlflow")
        self.fault, self.names = fault, []

    def set_experiment(self, name):
        sys.stdout.write("View the experiment at http://x\n")
        if self.fault:
            raise self.fault

    def __getattr__(self, name):
        if name == "start_run":
            return lambda **_: self
        self.names.append(name)
        return lambda *_, **__: []

    info = SimpleNamespace(run_id="r1")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


MEASURE = ["trace", "qwen3", "-d", "rows.jsonl", "--preset", "quick", "--plots", "none", "--json"]


@pytest.mark.parametrize("fault", [None, OSError("no route to\nhost"), SystemExit(3)])
def test_a_tracker_changes_neither_the_report_nor_the_exit_code(fault, hess, checkpoint, monkeypatch):
    tracker = Tracker(fault)
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    ended = hess(*MEASURE, "--log-to", "mlflow")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert report["status"] == "ok"
    assert "View the experiment" in ended.err
    if fault is None:
        assert "logged to mlflow: run r1" in ended.err
        assert "log_metrics" in tracker.names
    else:
        words = "no route to host" if isinstance(fault, OSError) else "3"
        assert f"warning: --log-to mlflow: {words}; the run is not there, its report is unchanged" in ended.err
        assert "log_metrics" not in tracker.names
    (file,) = checkpoint.parent.glob("outputs/**/report.json")
    assert json.loads(file.read_text()) == report
    assert "tracker" not in [warning["code"] for warning in report["warnings"]]


def test_a_tracker_that_is_not_installed_is_a_warning_before_the_run_and_an_unknown_one_an_error(
    hess, checkpoint, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    ended = hess(*MEASURE, "--log-to", "wandb")
    assert ended.code == 0
    assert json.loads(ended.out)["status"] == "ok"
    assert "warning: --log-to: wandb is not installed, nothing is logged there; pip install 'hess[wandb]'" in ended.err
    refused = hess(*MEASURE, "--log-to", "excel")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "error: log_to: 'excel' is not a tracker; allowed: tensorboard, wandb, mlflow\n"
