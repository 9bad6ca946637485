"""The number of products that a plan states, against the number that the run's report has, self-test and all."""

import json

import pytest
from tiny import VOCAB, tiny_model

from hesscli.recipe.document import resolve
from hesscli.run.planning.probe_cost import demands
from hesscli.run.session import run

SMALL = {"estimator.probes": 3, "estimator.steps": 6}
TOPK = {"estimator.k": 1, "estimator.steps": 40, "estimator.tolerance": 0.3}
SOLVE = {"operator.kind": "ggn", "estimator.damping": [1e-4, 1e-3], "estimator.steps": 25}
FULL = {"estimator.reorthogonalise": "full"}
KNOWN = {
    "density": ("density", SMALL | FULL),
    "density without an error of the data": ("density", SMALL | FULL | {"estimator.data_error": "off"}),
    "trace, krylov": ("trace", SMALL),
    "trace, xtrace": ("trace", SMALL | {"estimator.method": "xtrace"}),
    "trace, hutch++": ("trace", SMALL | {"estimator.method": "hutch++"}),
    "trace of three rows": ("trace", SMALL | {"data.limit": 3}),
    "trace of narrow weights": ("trace", SMALL | {"model.dtype": "bfloat16"}),
    "trace by differences": ("trace", SMALL | {"operator.product": "finite-difference"}),
    "blockdiag": ("blockdiag", {"estimator.probes": 2, "estimator.top": 0}),
    "blockdiag with an error of the data": (
        "blockdiag",
        {"estimator.probes": 2, "estimator.top": 0, "estimator.data_error": "on"},
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matvecs")
    tiny_model("qwen3").save_pretrained(folder / "model")
    rows = [{"input_ids": [(7 * i + j * j) % (VOCAB - 1) + 1 for j in range(10)]} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def both(place, probe, values):
    """The plan's number, and the report."""
    data = {"data.id": str(place / "rows.jsonl"), "data.max_length": 10, "data.limit": 6}
    given = {"probe": probe, "model.id": str(place / "model"), **data, "output.plots": "none", **values}
    product = {"operator.product": "layered", "output.dir": str(place / "out")} | given
    recipe, _ = resolve([("test", product)])
    report = run(recipe, force=True, resume=False, on_event=lambda _event: None).report
    narrow, blocks = report.model.dtype == "bfloat16", max(1, len(report.blocks))
    demand = demands(recipe, dimension=report.model.num_parameters, num_blocks=blocks, narrow=narrow)[0]
    return demand.by_differences if "finite-difference" in values.values() else demand.matvecs, report


@pytest.mark.parametrize("case", KNOWN)
def test_the_products_of_a_plan_are_those_of_the_run(place, case):
    planned, report = both(place, *KNOWN[case])
    assert report.cost.matvecs == planned


@pytest.mark.parametrize("product", ["layered", "finite-difference"])
def test_the_products_of_pairs_are_the_plan_s_but_for_steps_and_searches_that_were_not_needed(place, product):
    planned, report = both(place, "topk", TOPK | {"operator.product": product})
    spared = TOPK["estimator.steps"] - report.estimator["steps_taken"]
    spared += 32 - report.estimator["completeness"]["matvecs"]  # four searches of eight steps, at most
    assert report.cost.matvecs == planned - spared


@pytest.mark.parametrize("preconditioner", ["none", "diagonal"])
def test_the_products_of_a_solve_that_does_not_converge_are_the_plan_s_but_for_the_data_s_error(place, preconditioner):
    values = SOLVE | {"estimator.preconditioner": preconditioner, "estimator.tolerance": 1e-14}
    planned, report = both(place, "solve", values)
    assert report.cost.matvecs == planned - len(SOLVE["estimator.damping"])
