"""Trackers: TensorBoard by its own reader, the others by modules that stand in for theirs, with their signatures."""

import sys
from types import ModuleType, SimpleNamespace

import known_reports
import pytest

from hesscli.errors import UsageError
from hesscli.report.document import write_report
from hesscli.report.exporting.trackers import send
from hesscli.report.exporting.trackers.content import scalars, settings, training_step


@pytest.fixture
def run_folder(tmp_path):
    write_report(known_reports.density_report(), tmp_path / "report.json")
    (tmp_path / "density.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_scalars_are_the_figures_with_their_intervals():
    report = known_reports.density_report()
    found = scalars(report)
    assert found["lambda_max/value"] == 500.0
    assert (found["lambda_max/ci_low"], found["lambda_max/ci_high"]) == report.metrics["lambda_max"].ci
    assert "effective_rank/value" not in found
    assert scalars(known_reports.trace_report(2))["block/transformer.h.1.mlp/trace/value"] == pytest.approx(
        21.61, abs=0.01
    )


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step3000", 3000),
        ("checkpoint-500", 500),
        ("step10k", 10_000),
        ("global_step42", 42),
        ("stage1-step7-tokens5B", 7),
    ]
    + [(name, 0) for name in ("main", None, "v1.5", "2024-01-02", "footsteps", "a" * 40)],
)
def test_the_step_of_a_training_is_read_from_the_revision(revision, step):
    report = known_reports.trace_report(1)
    report.model.revision = revision
    assert training_step(report) == step


def test_tensorboard_reads_the_figures_at_their_step_and_a_second_time_replaces_the_first(run_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    report = known_reports.density_report()
    for _ in range(2):
        assert send("tensorboard", report, run_folder) == str(run_folder)
    assert [path.name for path in run_folder.glob("*tfevents*")] == ["events.out.tfevents.hess"]
    assert not [path for path in run_folder.iterdir() if path.name.startswith(".")]
    reader = EventAccumulator(str(run_folder))
    reader.Reload()
    expected = scalars(report)
    assert sorted(reader.Tags()["tensors"]) == sorted(expected)
    for tag, value in expected.items():
        (event,) = reader.Tensors(tag)
        assert event.step == 3000
        assert make_ndarray(event.tensor_proto).item() == pytest.approx(value, rel=1e-6)


class FakeWandb(ModuleType):
    """Holds what it is told, as `wandb` 0.31 would take it."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace(name="wandb")
        self.begun, self.logged, self.artifacts, self.ended = [], {}, [], []

    def Settings(self, *, silent):  # noqa: N802 - as wandb has it
        return {"silent": silent}

    def Image(self, path):  # noqa: N802 - as wandb has it
        return ("image", path)

    def Artifact(self, name, type):  # noqa: N802 - as wandb has it
        return SimpleNamespace(name=name, type=type, files=[], add_file=lambda path: self.artifacts.append(path))

    def init(self, *, project, id, name, group, job_type, config, resume, settings):
        self.begun.append(
            {"project": project, "id": id, "name": name, "group": group, "config": config, "resume": resume}
        )
        return SimpleNamespace(
            log=self.logged.update,
            log_artifact=lambda artifact: None,
            finish=lambda exit_code: self.ended.append(exit_code),
            offline=False,
            url="https://tracker/run",
            dir="files",
        )


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_a_run_with_the_id_of_the_report(wandb, run_folder):
    report = known_reports.density_report()
    assert send("wandb", report, run_folder) == "https://tracker/run"
    (begun,) = wandb.begun
    assert (begun["id"], begun["project"], begun["resume"]) == ("7c1f09ab", "hess", "allow")
    assert begun["config"] == {**settings(report), "step": 3000}
    images = {"density": ("image", str(run_folder / "density.png"))}
    assert wandb.logged == {**scalars(report), **images}
    assert wandb.artifacts == [str(run_folder / "report.json")]
    assert wandb.ended == [0]


def test_a_wandb_run_that_breaks_is_ended_as_failed(wandb, run_folder):
    (run_folder / "report.json").unlink()
    wandb.Image = None
    with pytest.raises(TypeError):
        send("wandb", known_reports.density_report(), run_folder)
    assert wandb.ended == [1]


class FakeMlflow(ModuleType):
    """Holds what it is told, as `mlflow` 3.17 would take it."""

    def __init__(self):
        super().__init__("mlflow")
        self.__spec__ = SimpleNamespace(name="mlflow")
        self.runs, self.current, self.experiment = {}, None, None

    def set_experiment(self, experiment_name):
        self.experiment = experiment_name

    def search_runs(self, *, filter_string, output_format, max_results):
        wanted = filter_string.partition("= '")[2].rstrip("'")
        assert filter_string == f"tags.`hess.run_id` = '{wanted}'"
        found = [i for i, run in self.runs.items() if run["tags"].get("hess.run_id") == wanted]
        return [SimpleNamespace(info=SimpleNamespace(run_id=i)) for i in found]

    def start_run(self, run_id=None, run_name=None):
        run_id = run_id or f"run{len(self.runs)}"
        self.current = self.runs.setdefault(run_id, {"name": run_name, "tags": {}, "files": []})
        fake = self

        class Active:
            info = SimpleNamespace(run_id=run_id)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                fake.current = None

        return Active()

    def set_tags(self, tags):
        self.current["tags"].update(tags)

    def log_params(self, params):
        assert "params" not in self.current, "parameters of a run cannot be changed"
        self.current["params"] = params

    def log_metrics(self, metrics, step):
        self.current["metrics"], self.current["step"] = metrics, step

    def log_artifact(self, local_path):
        self.current["files"].append(local_path)


def test_mlflow_gets_one_run_however_often_a_report_is_sent(monkeypatch, run_folder):
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    report = known_reports.density_report()
    assert [send("mlflow", report, run_folder) for _ in range(2)] == ["run run0", "run run0"]
    (run,) = fake.runs.values()
    assert fake.experiment == "hess"
    assert (run["metrics"], run["step"], run["params"]) == (scalars(report), 3000, settings(report))
    assert run["files"][0] == str(run_folder / "report.json")


def test_a_tracker_that_is_not_known_or_not_installed_is_refused(monkeypatch, run_folder):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name, words in (
        ("excel", "'excel' is not known"),
        ("wandb", r"wandb is not installed; pip install 'hess\[wandb\]'"),
    ):
        with pytest.raises(UsageError, match=words):
            send(name, known_reports.density_report(), run_folder)
