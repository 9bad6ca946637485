"""Every recipe that ships is valid, and runs in a reduced form with the settings that it names."""

from pathlib import Path

import pytest
import yaml

from hesscli.cli.app import _exit_code
from hesscli.report.document import read_report

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
# What a budget may be cut to without a run that ends early for it.
SMALLEST = {"density": ["estimator.probes=2", "estimator.steps=6"], "trace": [], "topk": [], "blockdiag": []}


def test_there_are_recipes():
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_runs_in_a_reduced_form(path, tmp_path, capsys):
    recipe = yaml.safe_load(path.read_text())
    assert recipe["name"] == path.stem
    small = ["data.limit=2", "data.max_length=16", f"output.dir={tmp_path}", "operator.params=['*norm*']"]
    assert _exit_code(["run", str(path), *small, *SMALLEST[recipe["probe"]], "-q"]) == 0
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


def test_a_recipe_of_a_paper_has_the_budget_of_the_paper():
    budgets = {path.stem: yaml.safe_load(path.read_text())["estimator"] for path in RECIPES}
    assert (budgets["fshp-2026"]["probes"], budgets["fshp-2026"]["steps"]) == (10, 80)
    assert budgets["fshp-2026"]["basis_dtype"] == "bfloat16"
    assert budgets["hessformer-2025"]["steps"] == 30
