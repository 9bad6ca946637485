"""hess sweep as it is typed: what goes where, with which exit code."""

import json
from pathlib import Path

import pytest

from hesscli.report.sweep import read_manifest

pytestmark = pytest.mark.usefixtures("small_demo")
SMALL = ["data.limit=2", "data.max_length=16", "operator.params=['*norm*']", "output.plots=none"]
TRACE = [*SMALL, "estimator.probes=2", "estimator.steps=2"]
RECIPE = """
schema: hess.recipe/1
name: grid
probe: trace
matrix:
  model.revision: [step200, step50]
  operator.product: [auto, finite-difference]
exclude: [{operator.product: finite-difference}]
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "grid.yaml").write_text(RECIPE)
    return "grid.yaml"


def test_a_sweep_says_its_table_on_stdout_and_its_cells_on_stderr(hess, recipe):
    ended = hess("sweep", recipe, *TRACE)
    assert ended.code == 0, ended.err
    rows = [line.split() for line in ended.out.splitlines()]
    assert rows[0][:3] == ["revision", "product", "trace"]
    assert [row[0] for row in rows[2:4]] == ["step50", "step200"]
    assert [row[-1] for row in rows[2:4]] == ["ok", "ok"]
    assert "cell 2 of 2: model.revision=step200 operator.product=auto" in ended.err
    assert "outputs/sweeps/grid-" in ended.out
    again = hess("sweep", recipe, *TRACE)
    assert "cell" not in again.err
    assert again.out == ended.out


def test_json_is_the_manifest_and_quiet_is_its_path(hess, recipe, tmp_path):
    ended = hess("sweep", recipe, *TRACE, "-q", "-o", "here")
    assert all(line.startswith("warning: ") for line in ended.err.splitlines())
    path = Path(ended.out.strip())
    assert path.parts[:2] == ("here", "sweeps")
    ended = hess("sweep", recipe, *TRACE, "--json", "-o", "here")
    manifest = json.loads(ended.out)
    assert manifest == json.loads(path.read_text())
    assert [cell["status"] for cell in manifest["cells"]] == ["done", "done"]
    assert str(tmp_path) not in ended.out


def test_models_in_place_of_a_recipe_are_swept_with_the_probe_asked_for(hess):
    words = ["demo@step200", "demo@step50", "data.limit=3", "--probe", "density"]
    ended = hess("sweep", *words, "--dry-run")
    assert ended.code == 0
    first, second, last = ended.out.splitlines()
    assert first.split()[:3] == ["1", "missing", "model.id=demo@step50"]
    assert "model.id=demo@step200" in second
    assert last.startswith("2 of 2 cells would run in outputs/sweeps/models-density-")
    shown = hess("sweep", *words, "--print-config").out
    for line in ("probe: density  # argument", "limit: 3  # override", "model.id:  # argument"):
        assert line in shown
    assert "probe: topk" in hess("sweep", "demo", "--print-config").out


def test_a_dry_run_writes_nothing_and_says_what_is_done_failed_and_missing(hess, recipe, tmp_path):
    hess("sweep", recipe, *TRACE, "~exclude", "matrix.operator.kind=[ggn]", "--shard", "1/2")
    before = sorted(tmp_path.rglob("*"))
    ended = hess("sweep", recipe, *TRACE, "~exclude", "matrix.operator.kind=[ggn]", "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["done", "missing", "done", "missing"]
    assert "(would run)" in lines[1]
    assert "(stays as it is)" in lines[0]
    assert lines[4].startswith("2 of 4 cells would run in ")


def test_failed_cells_end_in_seven_with_the_first_reason(hess, recipe):
    words = ["sweep", recipe, *TRACE, "~exclude", "matrix.operator.kind=[ggn]"]
    ended = hess(*words)
    assert ended.code == 7
    error = ended.err.splitlines()[-1]
    assert error.startswith("error: sweep: 2 of 4 cells failed (first: operator.product: 'finite-difference' is for")
    assert error.endswith("--retry-failed tries them again")
    assert [line.split()[-1] for line in ended.out.splitlines()[2:6]] == ["ok", "failed", "ok", "failed"]
    ended = hess(*words, "-q")
    assert ended.code == 7
    assert ended.err.splitlines() == [error]
    manifest = read_manifest(ended.out.strip())
    assert [cell.exit_code for cell in manifest.cells] == [None, 2, None, 2]
    ended = hess(*words, "--dry-run")
    assert "--retry-failed tries it again" in ended.out
    assert "2 of 4 cells would run" in hess(*words, "--dry-run", "--retry-failed").out


def test_a_shard_answers_for_its_own_cells_alone(hess, recipe):
    words = ["sweep", recipe, *TRACE, "-q", "--shard"]
    first = hess(*words, "1/2")
    assert first.code == 0
    assert read_manifest(first.out.strip()).count("missing") == 1
    second = hess(*words, "2/2")
    assert second.code == 0
    assert read_manifest(second.out.strip()).count("done") == 2


def test_a_gate_that_fails_ends_in_three_and_stands_in_the_manifest(hess, recipe):
    ended = hess("sweep", recipe, *TRACE, "-q", "--assert", "trace < -1e9")
    assert ended.code == 3
    assert [cell.verdict for cell in read_manifest(ended.out.strip()).cells] == ["fail", "fail"]
    assert hess("sweep", recipe, *TRACE, "--assert", "trace > -1e9").code == 0
    assert hess("sweep", recipe, *TRACE, "--assert", "tracee > 0").code == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("run grid.yaml", "matrix: grid.yaml is a recipe of many cells; use hess sweep grid.yaml"),
        ("sweep ci-smoke", "matrix: the recipe has none, so it has one cell; use hess run"),
        ("sweep grid.yaml demo", "RECIPE|MODEL...: 'grid.yaml' and 'demo': a recipe stands alone"),
        ("sweep data.limit=2", "RECIPE|MODEL...: is missing"),
        ("sweep nowhere.yaml", "recipe: 'nowhere.yaml' does not exist"),
        ("sweep grid.yaml --shard 3/2", "--shard: '3/2' is no part"),
        ("sweep grid.yaml --shard 0/2", "--shard: '0/2' is no part"),
        ("sweep grid.yaml --probe topk", "--probe: is for models without a recipe"),
        ("sweep demo --probe topkk", "--probe: 'topkk' is not allowed; allowed: density"),
        ("sweep grid.yaml matrix.model.dtype=[float16]", "matrix.model.dtype[0]: 'float16' is not allowed"),
        ("sweep grid.yaml ~matrix.model.revison", "override: '~matrix.model.revison' names no key"),
        ("sweep grid.yaml -o grid.yaml", "output.dir: 'grid.yaml' is not a folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_measured(words, error, hess, recipe, tmp_path):
    ended = hess(*words.split())
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith(f"error: {error}"), ended.err
    assert len(ended.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


def test_a_matrix_is_changed_and_dropped_from_the_command_line(hess, recipe):
    ended = hess("sweep", recipe, "matrix.model.revision=[final]", "~exclude", "~matrix.operator.product", "--dry-run")
    assert "1 of 1 cells" in ended.out
    assert hess("run", recipe, "~matrix", "--print-config").code == 0


def test_the_config_of_a_sweep_has_the_origin_of_each_value(hess, recipe):
    shown = hess("sweep", recipe, "data.limit=8", "matrix.operator.kind=[ggn]", "--print-config").out
    for line in ("probe: trace  # recipe", "  limit: 8  # override", "  model.revision:  # recipe"):
        assert line in shown
    assert "  operator.kind:  # override" in shown
    assert "exclude:  # recipe" in shown


def test_an_exclude_that_drops_nothing_is_a_warning(hess, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("{operator.product: finite-difference}", "{model.revision: step5}"))
    ended = hess("sweep", "r.yaml", "--dry-run")
    assert ended.code == 0
    assert "drops nothing" in ended.err
