"""Another library on the demo checkpoint, hessian-eigenthings, with weights and rows that hess did not read."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hessian_eigenthings import GGNOperator as PeerGGN
from hessian_eigenthings import HessianOperator as PeerHessian
from hessian_eigenthings import (
    hf_lm_forward,
    hf_lm_loss_of_output,
    hutchinson,
    lanczos,
    match_names,
)
from tiny import flat
from transformers import AutoModelForCausalLM, AutoTokenizer

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.trust.wide import float64_throughout
from hesscli.demo import checkpoint_folder, slice_file
from hesscli.recipe.document import resolve
from hesscli.run.session import run
from hesscli.run.setup import build_subject

ROWS, LENGTH = 2, 16
ONE_NORM = "*layers.1.post_attention_layernorm*"  # 96 entries: few enough for every column of its matrix


def peer_on(kind, *, dtype=torch.float32, params="*"):
    """The peer's matrix of the peer's mean loss of the next token."""
    folder = checkpoint_folder()
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager", dtype=dtype
    )
    model.get_input_embeddings().padding_idx = None  # torch would leave that row out, which real tokens read
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [json.loads(line)["text"] for line in slice_file().read_text(encoding="utf-8").splitlines()]
    tokens = [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(tokens[: ROWS * LENGTH]).view(ROWS, LENGTH)
    batches, chosen = [{"input_ids": rows, "labels": rows}], match_names(params)
    scores, loss = (
        hf_lm_forward(),
        hf_lm_loss_of_output(),
    )  # the loss that the model returns is in float32 always
    if kind == "ggn":
        return PeerGGN(model.eval(), batches, scores, loss, param_filter=chosen)
    return PeerHessian(
        model.eval(),
        batches,
        lambda m, batch: loss(scores(m, batch), batch),
        param_filter=chosen,
    )


def recipe(probe, **more):
    small = {"data.limit": ROWS, "data.max_length": LENGTH, "output.plots": "none"}
    return resolve([("test", {"probe": probe, **small, **more})])[0]


def report_of(probe, folder, **more):
    made = recipe(probe, **{"output.dir": str(folder), **more})
    return run(made, force=False, resume=False, on_event=lambda _event: None).report


@pytest.mark.parametrize(("dtype", "most"), [("float32", 3e-6), ("float64", 1e-12)])
@pytest.mark.parametrize(
    ("kind", "product"),
    [
        ("hessian", "double-backward"),
        ("hessian", "layered"),
        ("ggn", "auto"),
        ("ggn", "layered"),
    ],
)
def test_the_product_is_that_of_another_library(kind, product, dtype, most):
    # Norms and softmaxes are written to go through float32, which hides what a product errs by in float64.
    with float64_throughout() if dtype == "float64" else nullcontext():
        subject = build_subject(recipe("topk", **{"model.dtype": dtype}), on_event=lambda _event: None)
        operator = choose_operator(subject.risk, kind=kind, product=product, seed=0).operator
        peer = peer_on(kind, dtype=getattr(torch, dtype))
        v = operator.space.random("gaussian", seed=0, index=0)
        found = flat(operator.matvec(v))
        truth = peer.matvec(torch.cat([part.reshape(-1) for part in v])).detach().double().numpy()
    assert np.linalg.norm(found - truth) <= most * np.linalg.norm(truth)


@pytest.mark.parametrize(("kind", "which", "steps"), [("hessian", "both", 36), ("ggn", "largest", 24)])
def test_the_eigenvalues_at_the_ends_are_those_of_another_library(kind, which, steps, tmp_path):
    settings = {
        "operator.kind": kind,
        "estimator.k": 2,
        "estimator.which": which,
        "estimator.tolerance": 1e-4,
    }
    pairs = report_of("topk", tmp_path, **settings).eigenpairs
    # In float64: its inner products of float32 vectors are in float32, and its eigenvalues 3e-5 too large.
    theirs = lanczos(peer_on(kind, dtype=torch.float64), k=steps, max_iter=steps, which="LA", seed=1)
    places = [0, 1, -2, -1][: len(pairs)]
    for pair, place in zip(pairs, places, strict=True):
        value, residual = (
            float(theirs.eigenvalues[place]),
            float(theirs.residuals[place]),
        )
        assert theirs.converged[place]
        assert pair.converged
        assert pair.value == pytest.approx(value, rel=1e-5)
        assert abs(pair.value - value) <= pair.bar + residual


def test_the_trace_is_that_of_another_library_within_both_errors(tmp_path):
    metric = report_of("trace", tmp_path).metrics["trace"]
    theirs = hutchinson(peer_on("hessian"), num_samples=24, seed=1)
    assert abs(metric.value - theirs.estimate) <= 3 * np.hypot(metric.stderr, theirs.stderr)


def test_figures_of_a_few_parameters_hold_those_of_the_whole_matrix_by_another_library(
    tmp_path,
):
    peer = peer_on("hessian", params=ONE_NORM)
    dense = torch.stack([peer.matvec(e) for e in torch.eye(peer.size)]).double().numpy()
    values = np.linalg.eigvalsh((dense + dense.T) / 2)
    truth = {
        "lambda_max": values[-1],
        "lambda_min": values[0],
        "spectral_radius": np.abs(values).max(),
    }
    truth |= {
        "trace": values.sum(),
        "frobenius_norm": np.linalg.norm(values),
        "negative_mass": (values < 0).mean(),
    }
    few = {"operator.params": [ONE_NORM], "estimator.steps": 16}
    for probe, names in (
        ("topk", ("lambda_max", "lambda_min")),
        ("trace", ("trace", "frobenius_norm")),
        ("density", truth),
    ):
        metrics = report_of(probe, tmp_path, **few).metrics
        for name in names:
            low, high = metrics[name].ci
            assert low <= truth[name] <= high, (probe, name)
