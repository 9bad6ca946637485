"""topk from the command line: bounded and rounded bases, a cheaper product for the basis, and the data's own error."""

import json

import numpy as np
import pytest
from tiny import dense_hessian, plain_loss, ragged_slice, spectrum_of, tiny_model

from hesscli.data import Slice

TINY = ["topk", "qwen3", "-d", "rows.jsonl", "--plots", "none", "--k", "2"]


@pytest.fixture
def topk(hess, checkpoint):
    def measure(*options):
        ended = hess(*TINY, "--json", *options)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return measure


def assert_true(report):
    """Each bar holds the eigenvalue of its own rank, and the ends of the spectrum are in their intervals."""
    truth = spectrum_of("qwen3")
    rounding = 1e-5 * np.abs(truth).max()  # the dense Hessian is in float32 too
    expected = [truth[-1], truth[-2], truth[1], truth[0]]
    for pair, value in zip(report["eigenpairs"], expected, strict=True):
        assert abs(pair["value"] - value) <= pair["bar"] + rounding
        assert pair["converged"]
    assert report["estimator"]["completeness"]["complete"]
    low, high = report["metrics"]["lambda_max"]["ci"]
    assert low - rounding <= truth[-1] <= high + rounding


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--krylov-dim 16",
        "--basis host --basis-dtype bfloat16",
        "--basis disk",
        "--basis-dtype int8 --krylov-dim 20 --tolerance 0.01",
        "--basis-product finite-difference",
        "--basis-product layered",
    ],
)
def test_the_dense_eigenvalues_come_out_whatever_the_basis(topk, options):
    report = topk(*options.split())
    assert_true(report)
    if "krylov-dim" in options:
        assert report["estimator"]["krylov_dim"] == int(options.split("krylov-dim ")[1].split()[0])
    if "finite" in options:
        assert 0 < report["estimator"]["basis_matvecs"] < report["cost"]["matvecs"]
        assert report["operator"]["product"] == "double-backward"


def test_the_density_and_the_trace_read_where_a_basis_is_kept(hess, checkpoint):
    for probe in ("density", "trace"):
        words = [probe, "qwen3", "-d", "rows.jsonl", "--plots", "none", "--json", "--basis", "disk"]
        report = json.loads(hess(*words, "--basis-dtype", "bfloat16").out)
        assert report["estimator"]["basis_dtype"] == "bfloat16"
        truth = spectrum_of("qwen3").sum()
        metric = report["metrics"]["trace"]
        assert abs(metric["value"] - truth) < 4 * (metric["stderr"] or 0) + 0.02 * abs(truth)


def test_the_slice_error_is_the_spread_of_the_rows_about_the_eigenvalue(topk):
    import torch

    report = topk()
    model, data, u = tiny_model("qwen3"), ragged_slice(), np.linalg.eigh(dense_hessian("qwen3"))[1][:, -1]
    model.get_input_embeddings().padding_idx = None  # the pad token is a real one here
    parameters, forms, terms = list(model.parameters()), [], []
    for row in data.sequences:
        loss = plain_loss(model, Slice((row,), id="row"))
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        parts = torch.split(torch.tensor(u, dtype=torch.float32), [p.numel() for p in parameters])
        slope = sum((g.reshape(-1) * part).sum() for g, part in zip(gradient, parts, strict=True))
        back = torch.autograd.grad(slope, parameters)
        forms.append(float(sum((b.reshape(-1) * part).sum() for b, part in zip(back, parts, strict=True))))
        terms.append(row.num_terms)
    forms, terms = np.array(forms), np.array(terms)
    value = (terms * forms).sum() / terms.sum()
    without = [np.average(np.delete(forms, i), weights=np.delete(terms, i)) for i in range(5)]
    spread = np.sqrt(4 / 5 * np.square(without - np.mean(without)).sum())  # the jackknife
    top = report["eigenpairs"][0]
    assert value == pytest.approx(top["value"], rel=1e-4)
    assert top["slice_error"] == pytest.approx(spread, rel=1e-3)
    assert report["metrics"]["lambda_max"]["errors"]["data"] == top["slice_error"]
    assert report["metrics"]["lambda_max"]["n"]["batches"] == 5


def test_the_held_out_value_is_the_quotient_on_the_rows_after_the_slice(topk):
    whole = topk()
    report = topk("--limit", "3", "--held-out", "2")
    assert report["data"]["sequences"] == 3
    assert report["estimator"]["held_out"] == 2
    top = report["eigenpairs"][0]
    assert top["slice_error"] is None  # three rows
    assert "few-rows" in {w["code"] for w in report["warnings"]}
    # The quotient of one vector on all five rows: at most the largest eigenvalue there, by Rayleigh and Ritz.
    terms = [row.num_terms for row in ragged_slice().sequences]
    mean = (sum(terms[:3]) * top["value"] + sum(terms[3:]) * top["held_out"]) / sum(terms)
    assert mean <= whole["eigenpairs"][0]["value"] * (1 + 1e-5)
    assert top["held_out_error"] > 0
    assert topk("--limit", "3")["run_id"] != report["run_id"]


def test_slices_of_several_sizes_are_judged_on_the_same_rows(topk):
    alone = topk("--limit", "3", "--held-out", "2")["eigenpairs"][0]
    named = topk("--limit", "3", "--held-out", "2", "--held-out-from", "3")["eigenpairs"][0]
    assert named == alone
    fewer = topk("--limit", "2", "--held-out", "2", "--held-out-from", "3")
    assert fewer["data"]["sequences"] == 2
    assert fewer["estimator"]["held_out_from"] == 3
    after = topk("--limit", "2", "--held-out", "2")["eigenpairs"][0]
    assert fewer["eigenpairs"][0]["value"] == after["value"]
    assert fewer["eigenpairs"][0]["held_out"] != after["held_out"]


def test_the_held_out_value_stands_in_the_table(hess, checkpoint):
    ended = hess(*TINY, "--limit", "3", "--held-out", "2")
    assert ended.code == 0
    assert "held out" in ended.out


# fmt: off
REFUSED = {
    "too few for a restart": ("--krylov-dim 15", 2, ("estimator.krylov_dim", "'15'", "at least 16 for 2 pairs")),
    "no rows are left": ("--held-out 3", 2, ("estimator.held_out", "no sequence follows the 5", "lower --limit")),
    "held out of itself": (
        "--limit 3 --held-out 2 --held-out-from 2",
        2,
        ("estimator.held_out_from", "2 is in the slice", "give 3 or more"),
    ),
    "nothing held out": ("--held-out-from 4", 2, ("estimator.held_out_from", "'4'", "with estimator.held_out")),
    "held out beyond the end": ("--limit 3 --held-out 1 --held-out-from 9", 2, ("held_out_from", "none at 9")),
    "not of this matrix": ("--operator ggn --basis-product finite-difference", 2, ("basis_product", "for the Hessian")),
    "place unknown": ("--basis tape", 2, ("estimator.basis", "'tape'", "allowed: device, host, disk")),
    "digits unknown": ("--basis-dtype int4", 2, ("estimator.basis_dtype", "'int4'", "float32, bfloat16, int8")),
}
# fmt: on


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(hess, checkpoint, case):
    words, code, said = REFUSED[case]
    ended = hess(*TINY, *words.split())
    assert ended.code == code
    error = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    for word in said:
        assert word in error[0]


def test_a_basis_restarts_where_more_does_not_fit_and_is_refused_where_the_least_does_not(
    hess, checkpoint, monkeypatch
):
    from hesscli.run.figures import basis

    vector = 4 * sum(p.numel() for p in tiny_model("qwen3").parameters())
    for count, code, said in ((40, 0, "restarted at 40 vectors"), (12, 5, "need 16 basis vectors, of which 12")):
        monkeypatch.setattr(basis, "available_bytes", lambda _device, n=count: int((n + 0.5) * vector / basis.SHARE))
        ended = hess(*TINY, "--force")
        assert ended.code == code, ended.err
        assert said in ended.err
