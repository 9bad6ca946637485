"""Every recipe that ships is valid, and runs in a reduced form with the settings that it names."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hesscli.cli.app import _exit_code
from hesscli.report.document import read_report
from hesscli.report.sweep import read_cells, read_manifest

pytestmark = pytest.mark.usefixtures("small_demo")
FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SINGLE = [path for path in RECIPES if "matrix" not in yaml.safe_load(path.read_text())]
SWEEPS = [path for path in RECIPES if path not in SINGLE]
# What a budget may be cut to without a run that ends early for it.
SMALLEST = {"density": ["estimator.probes=2", "estimator.steps=6"], "trace": [], "topk": [], "blockdiag": []}


def test_there_are_recipes():
    assert len(RECIPES) >= 15
    assert len(RECIPES) > len(SINGLE) > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_is_called_like_its_file_and_says_what_it_is_for(path):
    recipe = yaml.safe_load(path.read_text())
    assert recipe["name"] == path.stem
    assert 20 < len(recipe["description"]) < 100


@pytest.mark.parametrize("path", SINGLE, ids=lambda p: p.stem)
def test_a_shipped_recipe_runs_in_a_reduced_form(path, tmp_path, capsys):
    recipe = yaml.safe_load(path.read_text())
    small = ["data.limit=2", "data.max_length=16", f"output.dir={tmp_path}", "operator.params=['*norm*']"]
    assert _exit_code(["run", path.stem, *small, *SMALLEST[recipe["probe"]], "-q"]) == 0
    report = read_report(capsys.readouterr().out.strip())
    assert report.status == "ok"
    assert any(metric.value is not None for metric in report.metrics.values())
    operator = recipe.get("operator", {})
    assert report.operator.product == operator.get("product", report.operator.product)
    assert report.operator.kind == operator.get("kind", "hessian")
    cut = [word.partition("=")[0].removeprefix("estimator.") for word in SMALLEST[recipe["probe"]]]
    cut += ["preset", "basis"]  # where a basis lies is no part of the answer
    named = {key: value for key, value in recipe["estimator"].items() if key not in cut}
    assert {key: report.estimator.get(key) for key in named} == named


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_a_shipped_sweep_runs_in_a_reduced_form(path, tmp_path, capsys):
    recipe = yaml.safe_load(path.read_text())
    small = ["data.limit=2", "data.max_length=16", "operator.params=['*norm*']", "output.plots=[svg]"]
    small += SMALLEST[recipe["probe"]]
    if "data.limit" in recipe["matrix"]:  # as many cells, each of another size
        small.append(f"matrix.data.limit={list(range(1, 1 + len(recipe['matrix']['data.limit'])))}")
    assert _exit_code(["sweep", path.stem, *small, "-o", str(tmp_path), "-q"]) == 0
    file = Path(capsys.readouterr().out.strip())
    cells = read_cells(file, read_manifest(file))
    assert len(cells) == math.prod(len(values) for values in recipe["matrix"].values())
    assert {report.status for _, report in cells} == {"ok"}
    for cell, report in cells:
        assert all(is_measured(report, key, value) for key, value in cell.values.items()), cell.values
        assert report.estimator["seed"] == 0
    drawn_only = set(recipe["matrix"]) == {"density.kernel_width"}
    assert len({report.run_id for _, report in cells}) == (1 if drawn_only else len(cells))
    figures = {"density": {"trend.svg", "overlay.svg"}, "topk": {"trend.svg"}}[recipe["probe"]]
    assert {p.name for p in file.parent.glob("*.svg")} == ({"overlay.svg"} if drawn_only else figures)


def is_measured(report, key, value):
    """Whether a report is of what its cell says."""
    section, _, name = key.partition(".")
    if section == "estimator":
        return report.estimator[name] == value
    least, most = report.operator.steps or (0.0, 0.0)
    found = {
        "operator.kind": report.operator.kind == value,
        "operator.step": least < most if value == "auto" else least == most == value,
        "model.revision": report.model.revision == value,
        "model.id": report.model.revision == str(value).partition("@")[2],
        "data.limit": report.data.sequences == value,
        "density.kernel_width": True,  # of the picture alone
    }
    return found[key]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_says_what_it_would_do_before_it_does_it(path, tmp_path, capsys):
    matrix = yaml.safe_load(path.read_text()).get("matrix")
    words = ["run", path.stem, "--dry-run"] if matrix is None else ["sweep", path.stem, "--dry-run"]
    assert _exit_code([*words, *([] if matrix is None else ["-o", str(tmp_path)])]) == 0
    said = capsys.readouterr().out
    assert (" products on " in said) if matrix is None else ("cells would run" in said)
    assert list(tmp_path.iterdir()) == []


def test_the_studies_of_both_papers_are_recipes():
    matrices = {path.stem: yaml.safe_load(path.read_text())["matrix"] for path in SWEEPS}
    studies = {name: matrix for name, matrix in matrices.items() if name.startswith(("fshp-", "hessformer-"))}
    assert {name: set(matrix) for name, matrix in studies.items()} == {
        "fshp-basis-dtype": {"estimator.basis_dtype"},
        "fshp-kernel-width": {"density.kernel_width"},
        "fshp-step": {"operator.step"},
        "fshp-subsampling": {"data.limit"},
        "hessformer-reorthogonalisation": {"estimator.reorthogonalise"},
        "hessformer-subsampling": {"data.limit"},
    }
    assert {"float32", "bfloat16"} < set(studies["fshp-basis-dtype"]["estimator.basis_dtype"])
    assert {"full", "none"} < set(studies["hessformer-reorthogonalisation"]["estimator.reorthogonalise"])
    most, tenth = studies["fshp-subsampling"]["data.limit"]
    assert most == 10 * tenth
    hundredth, tenth, most = studies["hessformer-subsampling"]["data.limit"]
    assert (100 * hundredth, 10 * tenth) == (most, most)


def test_recipes_are_found_by_name_and_listed_with_what_they_are_for(hess):
    ended = hess("recipes", "--json")
    listed = {line["name"]: line for line in json.loads(ended.out)}
    assert sorted(listed) == [path.stem for path in RECIPES]
    assert listed["checkpoint-trajectory"]["verb"] == "sweep"
    assert listed["ci-smoke"]["probe"] == "trace"
    said = " ".join(hess("recipes").out.split())
    assert all(path.stem in said for path in RECIPES)
    assert hess("run", "ci-smoke", "--print-config").code == 0
    ended = hess("run", "ci-smok")
    assert ended.code == 2
    assert "did you mean ci-smoke?" in ended.err


def test_a_file_in_the_working_folder_goes_before_a_shipped_recipe_of_its_name(hess, tmp_path):
    (tmp_path / "ci-smoke").write_text("probe: density\n")
    assert "probe: density" in hess("run", "ci-smoke", "--print-config").out


@pytest.mark.slow
def test_an_installed_package_has_the_recipes(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    root = FOLDER.parent
    for name in ("hesscli", "recipes"):
        shutil.copytree(root / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    build = "from setuptools import setup; setup()"
    words = [sys.executable, "-c", build, "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(words, cwd=source, check=True, capture_output=True)
    code = "from hesscli.recipe.shipped import shipped_recipes as s; print(*s(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "built")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [path.stem for path in RECIPES]


def test_a_recipe_of_a_paper_has_the_budget_of_the_paper():
    budgets = {path.stem: yaml.safe_load(path.read_text())["estimator"] for path in SINGLE}
    assert (budgets["fshp-2026"]["probes"], budgets["fshp-2026"]["steps"]) == (10, 80)
    assert budgets["fshp-2026"]["basis_dtype"] == "bfloat16"
    assert budgets["hessformer-2025"]["steps"] == 30
