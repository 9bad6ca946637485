"""`--dtype bfloat16`: the error of narrow arithmetic is measured, stands in the intervals, or refuses the run."""

import json

import pytest

SMALL = [
    "-L",
    "2",
    "--max-length",
    "32",
    "--steps",
    "8",
    "--k",
    "1",
    "--dtype",
    "bfloat16",
    "--plots",
    "none",
    "--json",
]


@pytest.mark.parametrize("product", ["double-backward", "layered"])
def test_a_hessian_whose_products_are_far_from_float32_is_refused(hess, product):
    ended = hess("topk", "demo", *SMALL, "--product", product)
    assert ended.code == 4
    report = json.loads(ended.out)
    assert report["status"] == "untrustworthy"
    assert report["metrics"] == {}
    # Of the other figures none shows it.
    preflight = report["operator"]["preflight"]
    assert "rounding error of the product is" in report["status_text"]
    assert max(preflight[k] for k in ("rounding", "rounding_at_ends")) > 0.03
    assert max(preflight[k] for k in ("symmetry", "linearity", "known_answer")) < 0.05
    assert "use --dtype float32, or --product finite-difference, which computes in it" in ended.err.replace("\n", " ")


def test_differences_compute_in_float32_and_are_not(hess):
    ended = hess("topk", "demo", *SMALL, "--product", "finite-difference")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["operator"]["preflight"]["known_answer"] < 2e-3
    assert report["operator"]["preflight"]["rounding"] is None
    wide = json.loads(hess("topk", "demo", *SMALL[:-4], "float32", *SMALL[-3:]).out)
    narrow, truth = (r["metrics"]["lambda_max"]["value"] for r in (report, wide))
    assert narrow == pytest.approx(truth, rel=0.03)  # weights are rounded, arithmetic is not


def test_a_smaller_error_widens_intervals_and_is_said(hess):
    ended = hess("topk", "demo", *SMALL, "--operator", "ggn", "--params", "*embed*")
    report = json.loads(ended.out)
    assert 1e-3 < report["operator"]["preflight"]["rounding"] < 0.05
    metric, pair = report["metrics"]["lambda_max"], report["eigenpairs"][0]
    assert 1e-3 < pair["product_error"] < 0.05  # along this eigenvector
    assert metric["errors"]["precision"] >= 0.99 * pair["product_error"] * metric["value"]
    (text,) = [w["text"] for w in report["warnings"] if w["code"] == "rounding"]
    assert "from the same in float32, and intervals allow for it" in text


def test_float32_is_held_against_float64_without_a_warning(hess):
    report = json.loads(hess("topk", "demo", *SMALL[:-4], "float32", *SMALL[-3:]).out)
    preflight = report["operator"]["preflight"]
    assert 0 < preflight["rounding"] < 1e-5  # against float64
    assert 0 < preflight["rounding_at_ends"] < 1e-5
    assert max(preflight["slope"], preflight["curvature"]) < 1e-6  # in float64 too
    for pair in report["eigenpairs"]:
        assert 0 < pair["product_error"] < 1e-5
        assert pair["bar"] >= pair["product_error"] * abs(pair["value"])
    assert not [w for w in report["warnings"] if w["code"] == "rounding"]


def test_that_the_figure_of_a_fisher_matrix_is_the_ggns_is_said(hess, checkpoint):
    ended = hess("topk", "qwen3", "-d", "rows.jsonl", *SMALL[4:], "--operator", "fisher")
    (text,) = [w["text"] for w in json.loads(ended.out)["warnings"] if w["code"] == "rounding"]
    assert text.endswith("measured on the GGN, which stands for the Fisher matrix")
