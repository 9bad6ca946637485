"""Every recipe that ships is valid, and runs in a reduced form."""

from pathlib import Path

import pytest

from hesscli.cli.app import _exit_code
from hesscli.report.document import read_report

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes():
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_runs_in_a_reduced_form(path, tmp_path, capsys):
    small = ["data.limit=2", "data.max_length=16", f"output.dir={tmp_path}", "operator.params=['*norm*']"]
    assert _exit_code(["run", str(path), *small, "-q"]) == 0
    report = read_report(capsys.readouterr().out.strip())
    assert report.status == "ok"
    assert report.metrics
