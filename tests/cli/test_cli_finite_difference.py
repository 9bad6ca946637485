"""`--product finite-difference`: its error stands in the report and in every interval, and kinks are warned of."""

import json

import numpy as np
import pytest
import torch
from tiny import ragged_slice, spectrum_of, tiny_model, tiny_opt

DIFFERENCES = ["--product", "finite-difference", "--plots", "none", "--json"]
ROWS = ["-d", "rows.jsonl", "--limit", "5"]


def test_the_embedded_checkpoint_is_measured_and_the_error_is_reported(hess):
    ended = hess("topk", "demo", "-L", "4", "--max-length", "32", "--steps", "5", "--k", "1", *DIFFERENCES)
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    operator = report["operator"]
    assert operator["product"] == "finite-difference"
    assert operator["why"] == "as asked, 2 gradients each"
    assert 1e-5 < operator["error_estimate"] < 2e-3
    assert 0 < operator["steps"][0] < operator["steps"][1]
    assert 0 < operator["preflight"]["known_answer"] < 2e-3
    assert not {w["code"] for w in report["warnings"]} & {"kinks", "routing", "not-smooth", "difference-error"}


@pytest.mark.parametrize(("probe", "budget"), [("topk", ["--k", "2", "--steps", "60"]), ("trace", ["--probes", "16"])])
def test_intervals_allow_for_the_error_and_hold_the_dense_truth(hess, checkpoint, probe, budget):
    ended = hess(probe, "qwen3", *ROWS, *budget, *DIFFERENCES)
    assert ended.code == 0, ended.err
    eigenvalues = spectrum_of("qwen3")
    truth = {"lambda_max": eigenvalues[-1], "lambda_min": eigenvalues[0], "trace": eigenvalues.sum()}
    report = json.loads(ended.out)
    metrics, estimate = report["metrics"], report["operator"]["error_estimate"]
    found = {name: metrics[name] for name in truth if name in metrics}
    assert len(found) == (2 if probe == "topk" else 1)
    for name, metric in found.items():
        low, high = metric["ci"]
        assert low <= truth[name] <= high
        scale = np.abs(eigenvalues).max() if probe == "topk" else np.linalg.norm(eigenvalues)
        assert estimate / 3 < metric["errors"]["precision"] / scale < 3 * estimate


def test_an_exact_product_has_neither_step_nor_estimate(hess, checkpoint):
    ended = hess("topk", "qwen3", *ROWS, "--k", "1", "--steps", "5", "--plots", "none", "--json")
    operator = json.loads(ended.out)["operator"]
    assert operator["steps"] is None
    assert operator["error_estimate"] is None


def test_kinks_are_warned_of_before_and_their_numbers_after(hess, checkpoint):
    tiny_opt("relu", ffn_dim=256, num_hidden_layers=3).save_pretrained("opt")
    ended = hess("trace", "opt", *ROWS, "--probes", "4", *DIFFERENCES)
    assert ended.code in (0, 4)
    report = json.loads(ended.out)
    texts = {w["code"]: w["text"] for w in report["warnings"]}
    assert "ReLU" in texts["kinks"]
    assert "use an exact product" in texts["kinks"]
    assert "not-smooth" in texts
    assert texts["kinks"][:30] in ended.err.replace("\n", " ")


def test_switched_experts_are_counted_in_the_report(hess, checkpoint):
    model = tiny_model("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            gate = layer.mlp.gate.weight  # two experts that are nearly the same to every token
            gate[1] = gate[0] + 1e-3 * torch.randn(gate.shape[1], generator=torch.Generator().manual_seed(2))
    model.save_pretrained("mixtral")
    operators = {}
    for product in ("finite-difference", "double-backward"):
        ended = hess("trace", "mixtral", *ROWS, "--probes", "4", "--plots", "none", "--json", "--product", product)
        assert ended.code in (0, 4), ended.err
        report = json.loads(ended.out)
        operators[product] = report["operator"], [w["text"] for w in report["warnings"] if w["code"] == "routing"]
    operator, (text,) = operators["finite-difference"]
    assert operator["choices"] == 2 * sum(len(row.inputs["input_ids"]) for row in ragged_slice().sequences)
    assert 0 < operator["switched"] <= operator["choices"]
    assert f"of {operator['choices']} choices" in text
    assert f"up to {operator['switched']} change" in text
    operator, texts = operators["double-backward"]
    assert operator["choices"] is operator["switched"] is None
    assert texts == []


def test_other_matrices_have_no_such_product(hess):
    ended = hess("trace", "demo", "--operator", "ggn", "-L", "2", "--max-length", "8", *DIFFERENCES)
    assert ended.code == 2
    assert "'finite-difference' is for the Hessian, not for ggn" in ended.err
