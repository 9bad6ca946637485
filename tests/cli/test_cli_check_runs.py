"""Gates of the verbs that measure and of recipes: verdicts in the report, the exit code, and nothing measured twice."""

import json

import pytest
from safetensors.torch import load_file, save_file

MEASURED = ["qwen3", "-d", "rows.jsonl", "--limit", "5", "--plots", "none", "--k", "1"]


@pytest.fixture(autouse=True)
def no_actions(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def topk(hess, checkpoint):
    def measure(*words):
        return hess("topk", *MEASURED, *words)

    return measure


def report_of(folder):
    (path,) = folder.glob("outputs/*/*/*/report.json")
    return json.loads(path.read_text())


def test_the_report_and_the_exit_code_say_what_became_of_the_gates(topk, tmp_path):
    words = ["--assert", "lambda_max > 0", "--assert", "lambda_max < 1e-3"]
    ended = topk(*words, "--report", "copy.json")
    report = report_of(tmp_path)
    assert ended.code == 3
    assert [(g["expr"], g["verdict"]) for g in report["gates"]] == [
        ("lambda_max > 0", "pass"),
        ("lambda_max < 1e-3", "fail"),
    ]
    assert report["verdict"] == "fail"
    assert json.loads((tmp_path / "copy.json").read_text()) == report
    assert "FAIL  lambda_max < 1e-3" in ended.out
    assert "1 of 2 passed, 1 failed" in ended.out


def test_a_finished_run_is_judged_anew_and_not_measured_again(topk, tmp_path):
    first = topk("--json")
    again = topk("--json", "--assert", "lambda_max < 1e-3")
    assert (first.code, again.code) == (0, 3)
    before, after = json.loads(first.out), json.loads(again.out)
    assert after["verdict"] == "fail"
    assert "an equal run is there already" in again.err
    assert after == report_of(tmp_path)
    assert after | {"gates": [], "verdict": None} == before
    assert json.loads(topk("--json").out) == before


def test_the_baseline_of_a_run_is_another_run(topk, tmp_path):
    path = topk("-q").out.strip()
    words = ["--seed", "1", "--assert", "unchanged(lambda_max)", "--assert", "abs(lambda_min) < 1.1 * abs(base)"]
    ended = topk(*words, "--baseline", path, "--json")
    assert ended.code == 0, ended.err
    assert [gate["verdict"] for gate in json.loads(ended.out)["gates"]] == ["pass", "pass"]
    other = topk("--limit", "3", "--assert", "unchanged(lambda_max)", "--baseline", path)
    assert other.code == 2
    assert "error: baseline: data.fingerprint: not comparable" in other.err
    assert "The largest eigenvalue is" in other.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--assert", "lambda_max <"], "a figure or a number is missing"),
        (["--assert", "lambda_max < base"], "baseline: is missing"),
        (["--assert", "lambda_max < base", "--baseline", "no.json"], "baseline: no such file"),
        (["--baseline", "no.json"], "baseline: nothing is asserted"),
        (["--assert", "lambda_max < 1", "--on-inconclusive", "no"], "on_inconclusive: 'no' is not allowed"),
    ],
)
def test_what_can_be_refused_before_measuring_is(topk, tmp_path, words, says):
    ended = topk(*words)
    assert (ended.code, says in ended.err) == (2, True), ended.err
    assert not (tmp_path / "outputs").exists()


def test_an_unknown_figure_costs_nothing_of_what_was_measured(topk, tmp_path):
    ended = topk("--assert", "lamda_max < 1")
    assert (ended.code, "did you mean lambda_max?" in ended.err) == (2, True)
    assert "The largest eigenvalue is" in ended.out
    assert report_of(tmp_path)["gates"] == []


@pytest.fixture
def recipe(checkpoint, tmp_path):
    """Write a recipe with these gates in a folder beside the checkpoint."""

    def write(gates):
        (tmp_path / "recipes").mkdir(exist_ok=True)
        lines = [
            "probe: topk",
            "model: {id: qwen3}",
            "data: {id: rows.jsonl, limit: 5}",
            "estimator: {k: 1}",
            "output: {plots: none}",
            f"gates: {gates}",
        ]
        (tmp_path / "recipes" / "r.yaml").write_text("\n".join(lines))
        return "recipes/r.yaml"

    return write


def test_a_recipe_gates_its_run_with_a_baseline_in_its_own_folder(hess, recipe, tmp_path):
    path = hess("run", recipe("[]"), "-q").out.strip()
    made = hess("check", path, "--baseline", "recipes/base.json", "--update-baseline")
    assert made.code == 0, made.err
    ended = hess("run", recipe('[{assert: "lambda_max <= base * 1.1", baseline: base.json}]'), "-q")
    assert (ended.code, ended.out.strip()) == (0, path)  # the same run: gates are no part of its hash
    assert report_of(tmp_path)["verdict"] == "pass"
    tighter = hess("run", recipe('[{assert: "lambda_max <= base * 0.9", baseline: base.json}]'), "-q")
    assert tighter.code == 3
    replay = path.replace("report.json", "recipe.yaml")
    assert "gates" not in (tmp_path / replay).read_text()
    assert hess("run", replay, "-q").out.strip() == path


def test_gates_of_the_recipe_and_of_the_command_line_add_up(hess, recipe, tmp_path):
    ended = hess("run", recipe("[{assert: lambda_max > 0}]"), "--assert", "lambda_max < 1e-3")
    assert ended.code == 3
    assert [gate["verdict"] for gate in report_of(tmp_path)["gates"]] == ["pass", "fail"]


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ("[{assert: lambda_max < base, baseline: ../rows.jsonl}]", "gates.0.baseline: '../rows.jsonl' lies outside"),
        ("[{assert: lambda_max < base, baseline: /etc/passwd}]", "gates.0.baseline: '/etc/passwd' lies outside"),
        ("[{assert: lambda_max < base}]", "gates.0.baseline: is missing"),
        ("[{assert: lambda_max > 0}, {assert: lambda_max}]", "gates.1.assert: 'lambda_max': compares nothing"),
        ("[{asert: lambda_max > 0}]", "gates.0.assert: is missing"),
        ("[{assert: a > 0, base: x}]", "gates.0.base: no such key; keys are assert, baseline"),
        ("lambda_max > 0", "gates: 'lambda_max > 0' does not fit; it should be a list"),
    ],
)
def test_a_wrong_gate_of_a_recipe_is_refused_with_its_path(hess, recipe, gates, says):
    ended = hess("run", recipe(gates))
    assert ended.code == 2
    assert f"error: {says}" in ended.err


def test_a_link_out_of_the_recipes_folder_is_refused(hess, recipe, tmp_path):
    path = recipe("[{assert: lambda_max < base, baseline: link.json}]")
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "recipes" / "link.json").symlink_to(tmp_path / "secret.json")
    assert "lies outside the recipe's folder" in hess("run", path).err


def test_the_gates_are_printed_with_the_configuration(hess, recipe):
    out = hess("run", recipe("[{assert: lambda_max > 0}]"), "--print-config").out
    assert "gates:  # recipe" in out
    assert "- assert: lambda_max > 0" in out
    assert "gates" not in hess("run", recipe("[]"), "--print-config").out


def test_a_run_that_is_not_trustworthy_ends_as_such_and_passes_nothing(topk, checkpoint, tmp_path):
    weights = checkpoint / "model.safetensors"
    state = load_file(weights)
    state["model.norm.weight"] *= 3e38
    save_file(state, weights, {"format": "pt"})
    ended = topk("--assert", "lambda_max > -1e9")
    assert ended.code == 4
    assert report_of(tmp_path)["verdict"] == "fail"


def test_json_stays_alone_on_stdout_under_github_actions(topk, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    ended = topk("--json", "--assert", "lambda_max < 1e-3")
    assert json.loads(ended.out)["verdict"] == "fail"
    assert [line for line in ended.err.splitlines() if line.startswith("::error title=hess%3A fail%3A lambda_max")]
