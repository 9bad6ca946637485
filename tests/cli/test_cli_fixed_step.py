"""`--step X` under `--product finite-difference`: one step, in the report and in the run's name, or a refusal."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("small_demo")
SMALL = ["demo", "-L", "2", "--max-length", "16", "--params", "*norm*", "--plots", "none"]
DIFFERENCES = ["--product", "finite-difference"]


def test_the_step_is_the_one_that_was_asked_for_and_each_is_a_run_of_its_own(hess):
    reports = []
    for step in ("auto", "0.01", "0.001"):
        ended = hess("trace", *SMALL, *DIFFERENCES, "--step", step, "--json")
        assert ended.code == 0, ended.err
        reports.append(json.loads(ended.out))
    assert [r["operator"]["steps"] for r in reports[1:]] == [[0.01, 0.01], [0.001, 0.001]]
    assert len({r["run_id"] for r in reports}) == 3
    assert all(0 < r["operator"]["error_estimate"] < 1 for r in reports)
    assert "all at the step 0.01" in reports[1]["operator"]["why"]


def test_a_run_is_replayed_with_its_step(hess, tmp_path):
    ended = hess("trace", *SMALL, *DIFFERENCES, "--step", "0.01", "-q")
    recipe = ended.out.strip().replace("report.json", "recipe.yaml")
    again = hess("run", recipe, "--json")
    assert "an equal run is there already" in again.err
    assert json.loads(again.out)["operator"]["steps"] == [0.01, 0.01]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "0.01"], "auto, or with operator.product finite-difference"),
        ([*DIFFERENCES, "--step", "0"], "auto or greater than 0"),
        ([*DIFFERENCES, "--step", "soon"], "auto or a number"),
        ([*DIFFERENCES, "--step", "1e-12"], "is lost in the roundings"),
    ],
)
def test_a_step_that_cannot_be_is_refused_in_a_line(hess, words, said):
    ended = hess("trace", *SMALL, *words)
    assert ended.code == 2
    assert "error: operator.step: " in ended.err
    assert said in ended.err
