"""The result on stdout, the rest on stderr; a run folder is whole or not there; a second run measures nothing."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

from hesscli.report.schema import Report
from hesscli.run import session

# Eight parameters of the tiny checkpoint, all rows of its file: no warning, no figure, half a second.
TINY = ["topk", "qwen3", "-d", "rows.jsonl", "--limit", "5", "--params", "model.norm.weight", "--k", "2"]
NO_FIGURE = ["--plots", "none"]


@pytest.fixture
def measured(monkeypatch):
    """The probes that were run, in order."""
    probes, measure = [], session.measure

    def counted(recipe, *arguments, **options):
        probes.append(recipe.probe)
        return measure(recipe, *arguments, **options)

    monkeypatch.setattr(session, "measure", counted)
    return probes


def test_json_is_the_report_and_nothing_else_on_stdout(hess, checkpoint):
    ended = hess(*TINY, *NO_FIGURE, "--json")
    assert ended.code == 0
    report = Report.model_validate_json(ended.out)
    assert report.status == "ok"
    assert report.model.id == "qwen3"
    assert report.operator.why in ended.err
    assert len(ended.err.splitlines()) == 1


def test_quiet_prints_the_reports_path_and_stderr_is_silent(hess, checkpoint, tmp_path):
    ended = hess(*TINY, *NO_FIGURE, "-q")
    (path,) = ended.out.splitlines()
    assert ended.err == ""
    assert Report.model_validate_json((tmp_path / path).read_text()).command == "topk"


def test_warnings_are_told_to_the_quiet_and_stand_in_the_report(hess, checkpoint):
    ended = hess(*TINY, *NO_FIGURE, "--limit", "9", "-q")
    assert ended.err == "warning: rows.jsonl holds 5 sequences, fewer than the limit of 9\n"
    (again,) = json.loads(hess(*TINY, *NO_FIGURE, "--limit", "9", "--json").out)["warnings"]
    assert again["text"] in ended.err


def test_the_table_names_the_report_and_the_figure(hess, checkpoint, tmp_path):
    ended = hess(*TINY, "--plots", "png")
    assert "lambda_max" in ended.out
    named = dict(line.split(maxsplit=1) for line in ended.out.splitlines()[-2:])
    assert named.keys() == {"report", "figure"}
    assert all((tmp_path / path).stat().st_size for path in named.values())


def test_output_that_is_piped_has_no_escapes(hess, checkpoint):
    ended = hess(*TINY, *NO_FIGURE)
    assert ended.out.count("\n") > 5
    assert "\x1b" not in ended.out + ended.err
    assert max(map(len, ended.out.splitlines()[:-1])) <= 80


def test_columns_widen_piped_output(hess, checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, hess(*TINY, *NO_FIGURE).out.splitlines()[:3])) <= 50


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "bar", "colour"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"CI": "1"}, False, True), ({"TERM": "dumb"}, False, False)],
)
def test_a_bar_stands_on_a_terminal_alone_and_never_in_ci(hess, checkpoint, monkeypatch, environment, bar, colour):
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert hess(*TINY, *NO_FIGURE, "--limit", "9").code == 0
    said = terminal.getvalue()
    assert ("\x1b[?25l" in said) is bar
    assert ("\x1b[33m" in said) is colour
    assert "warning: rows.jsonl" in said


def test_a_second_equal_run_measures_nothing_and_gives_the_same_report(hess, checkpoint, measured):
    first = hess(*TINY, *NO_FIGURE, "--json")
    again = hess(*TINY, *NO_FIGURE, "--json")
    assert measured == ["topk"]
    assert again.out == first.out
    assert "--force" in again.err
    forced = hess(*TINY, *NO_FIGURE, "--json", "--force")
    assert measured == ["topk", "topk"]
    one, other = json.loads(first.out), json.loads(forced.out)
    assert one["metrics"] == other["metrics"]
    assert one["run_id"] == other["run_id"]


def test_what_cannot_change_the_figures_does_not_change_the_run(hess, checkpoint, measured):
    path = hess(*TINY, *NO_FIGURE, "-q").out
    assert hess(*TINY, "-q", "--batch-size", "1").out == path
    assert measured == ["topk"]
    assert hess(*TINY, *NO_FIGURE, "-q", "--seed", "1").out != path


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        (["topk", "--k", "2"], {"topk"}),
        (["density", "--probes", "2"], {"density"}),
        (["trace", "--probes", "3"], {"trace"}),
        (["blockdiag", "--probes", "2"], {"blockdiag", "coupling"}),
        (["solve", "--damping", "1", "--damping", "10"], {"solve"}),
    ],
)
def test_the_folder_is_whole_and_its_recipe_replays_the_run(hess, checkpoint, tmp_path, measured, words, figures):
    probe, *options = words
    taken = ["--params", "model.norm.weight", "--params", "model.layers.0.mlp.*", "--limit", "5"]
    first = hess(probe, "qwen3", "-d", "rows.jsonl", *taken, *options, "-o", "out", "-q")
    assert first.code == 0
    folder = (tmp_path / first.out.strip()).parent
    assert folder.parent.relative_to(tmp_path).as_posix() == "out/qwen3/main"
    names = {path.name for path in folder.iterdir()}
    report = Report.model_validate_json((folder / "report.json").read_text())
    assert names == {"report.json", "recipe.yaml", "journal.jsonl", *report.artifacts}
    assert names >= {f"{figure}.{ending}" for figure in figures for ending in ("png", "svg", "csv")}
    assert folder.name == f"{probe}-{report.run_id}"
    assert not [*tmp_path.rglob("*.part")]
    assert str(tmp_path) not in (folder / "report.json").read_text()
    replayed = hess("run", folder / "recipe.yaml", "-q")
    assert replayed.out == first.out, replayed.err
    assert measured == [probe]


OWN = """from transformers import Qwen3Config, Qwen3ForCausalLM
class OwnConfig(Qwen3Config):
    model_type = "own"
class OwnForCausalLM(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


def test_other_code_of_a_checkpoint_is_another_run(hess, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = json.loads((checkpoint / "config.json").read_text())
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "modeling_own.py").write_text(OWN)
    words = (*TINY, *NO_FIGURE, "--trust-remote-code", "-q")
    first = hess(*words)
    assert first.code == 0, first.err
    assert hess(*words).out == first.out
    (checkpoint / "modeling_own.py").write_text(f"{OWN}    factor = 2\n")
    assert hess(*words).out != first.out


def test_figures_that_a_finished_run_lacks_are_drawn_and_nothing_is_measured(hess, checkpoint, tmp_path, measured):
    path = tmp_path / hess(*TINY, *NO_FIGURE, "-q").out.strip()
    assert json.loads(path.read_text())["artifacts"] == []
    again = hess(*TINY, "--plots", "svg")
    assert "drawn again with output.plots svg; nothing was measured" in again.err
    assert measured == ["topk"]
    assert json.loads(path.read_text())["artifacts"] == ["topk.svg", "topk.csv"]
    assert {"topk.svg", "topk.csv"} <= {file.name for file in path.parent.iterdir()}
    assert "plots:\n  - svg" in (path.parent / "recipe.yaml").read_text()
    before = path.stat().st_mtime_ns
    assert "drawn" not in hess(*TINY, *NO_FIGURE).err
    assert path.stat().st_mtime_ns == before


def test_report_copies_the_report(hess, checkpoint, tmp_path):
    (tmp_path / "copies").mkdir()
    ended = hess(*TINY, *NO_FIGURE, "--report", "copies/a.json", "-q")
    written = (tmp_path / ended.out.strip()).read_text()
    assert (tmp_path / "copies/a.json").read_text() == written
    assert hess(*TINY, *NO_FIGURE, "--report", ended.out.strip(), "-q").code == 0  # onto itself


def test_a_model_left_out_is_demo_and_that_is_said(hess):
    words = ["topk", "--k", "2", "--limit", "2", "--max-length", "16", "--steps", "3", *NO_FIGURE]
    ended = hess(*words, "--json")
    assert "no MODEL given: using demo" in ended.err
    assert json.loads(ended.out)["model"]["id"] == "demo"
    assert "MODEL" not in hess(*words, "-q").err


def test_the_model_comes_from_the_environment_unless_it_is_typed(hess, checkpoint, monkeypatch):
    monkeypatch.setenv("HESS_MODEL", "qwen3")
    ended = hess("topk", *TINY[2:], *NO_FIGURE, "--json")
    assert json.loads(ended.out)["model"]["id"] == "qwen3"
    assert "MODEL" not in ended.err
    assert "id: qwen3  # HESS_MODEL" in hess("topk", "--print-config").out
    assert "id: demo  # argument" in hess("topk", "demo", "--print-config").out


def test_strict_ends_in_4_where_a_pair_did_not_converge(hess, checkpoint):
    words = ["topk", "qwen3", "-d", "rows.jsonl", "--limit", "5", "--k", "2", "--steps", "3", *NO_FIGURE, "--json"]
    loose = hess(*words)
    assert loose.code == 0
    assert json.loads(loose.out)["status"] == "not_converged"
    strict = hess(*words, "--strict")
    assert strict.code == 4
    assert strict.out == loose.out
    assert strict.err.splitlines()[-1].startswith("error: status: not converged: ")
    assert hess(*TINY, *NO_FIGURE, "--strict").code == 0


def test_figures_that_cannot_be_trusted_end_in_4_with_a_report_that_says_so(hess, checkpoint, tmp_path):
    weights = checkpoint / "model.safetensors"
    state = load_file(weights)
    state["model.norm.weight"] *= 3e38
    save_file(state, weights, {"format": "pt"})
    ended = hess(*TINY, "--json")
    assert ended.code == 4
    report = Report.model_validate_json(ended.out)
    assert report.status == "untrustworthy"
    assert not report.metrics
    assert [*tmp_path.rglob("report.json")]
    assert ended.err.splitlines()[-1].startswith("error: status: untrustworthy: ")
    shown = hess(*TINY)
    assert shown.code == 4
    assert "lambda_max" not in shown.out


def test_plot_draws_again_what_the_run_drew(hess, checkpoint, tmp_path):
    folder = (tmp_path / hess(*TINY, "-q").out.strip()).parent
    ended = hess("plot", folder, "-o", "again", "--plots", "svg")
    assert ended.code == 0
    assert {path.split("/")[-1] for path in ended.out.splitlines()} == {"topk.svg", "topk.csv"}
    assert (tmp_path / "again/topk.csv").read_text() == (folder / "topk.csv").read_text()


def begun(*words):
    known = {k: v for k, v in os.environ.items() if not k.startswith(("HESS_", "HF_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "hesscli", *words],
        env={**known, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it from the start
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_that_is_stopped_says_so_in_one_line_and_leaves_nothing(number, code, word, tmp_path):
    long = ["--limit", "8", "--max-length", "128", "--k", "40", "--steps", "3000", "--tolerance", "1e-9"]
    process = begun("topk", "demo", *long, "-o", str(tmp_path / "out"))
    while process.poll() is None and not [*tmp_path.rglob("*.part")]:  # until it measures
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines()[-1].startswith(f"{word}: ")
    assert sum(line.startswith((word, "error")) for line in err.splitlines()) == 1
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.suffix == ".part"]


def test_a_reader_that_leaves_early_is_no_failure():
    process = begun("schema", "report")
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
