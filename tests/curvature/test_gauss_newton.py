"""GGN and both Fishers against dense matrices from a Jacobian built by other code."""

from functools import cache

import numpy as np
import pytest
import torch
from tiny import CONFIGS, flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator, OuterProductOperator
from hesscli.curvature.score_curvature import SampledLabelCurvature
from hesscli.data import IGNORED, Slice


@cache
def jacobian_of(name):
    """Rows of d logits / d theta for each term, (terms, vocabulary, n), probabilities and labels: one row each."""
    model, data = tiny_model(name), ragged_slice()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    parameters = list(model.parameters())
    rows, probabilities, labels = [], [], []
    for sequence in data.sequences:
        logits = model(sequence.inputs["input_ids"][None], use_cache=False).logits[0]
        keep = sequence.targets != IGNORED
        scores = logits[keep].flatten()
        parts = torch.autograd.grad(
            scores, parameters, torch.eye(len(scores)), allow_unused=True, is_grads_batched=True
        )
        shapes = [(len(scores), *p.shape) for p in parameters]
        rows.append(
            torch.cat(
                [
                    (torch.zeros(s) if part is None else part).reshape(len(scores), -1)
                    for s, part in zip(shapes, parts, strict=True)
                ],
                dim=1,
            )
        )
        probabilities.append(torch.softmax(logits[keep], dim=-1).detach())
        labels.append(sequence.targets[keep])
    p, y = torch.cat(probabilities).double().numpy(), torch.cat(labels).numpy()
    return torch.cat(rows).double().numpy().reshape(len(y), p.shape[1], -1), p, y


def dense_ggn(name):
    jacobian, p, y = jacobian_of(name)
    inner = np.einsum("tv,vw->tvw", p, np.eye(p.shape[1])) - np.einsum("tv,tw->tvw", p, p)
    return np.einsum("tvn,tvw,twm->nm", jacobian, inner, jacobian, optimize=True) / len(y)


def dense_empirical_fisher(name):
    jacobian, p, y = jacobian_of(name)
    residual = p - np.eye(p.shape[1])[y]
    gradients = np.einsum("tv,tvn->tn", residual, jacobian)
    return gradients.T @ gradients / len(y)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_ggn_and_empirical_fisher_are_the_dense_ones(name, batch_size):
    risk = risk_of(tiny_model(name), ragged_slice(), batch_size)
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(2)]
    for operator, dense in ((GGNOperator, dense_ggn), (EmpiricalFisherOperator, dense_empirical_fisher)):
        for product, v in zip(operator(risk).matvecs(vs), vs, strict=True):
            assert relative(flat(product), dense(name) @ flat(v)) < 1e-5


def fisher(risk, seed):
    return OuterProductOperator(risk, SampledLabelCurvature(seed=seed))


def test_they_are_positive_semi_definite():
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    for operator in (
        GGNOperator(risk),
        EmpiricalFisherOperator(risk),
        fisher(risk, 0),
    ):
        for i in range(5):
            v = risk.space.random("gaussian", seed=1, index=i)
            assert risk.space.inner(v, operator.matvec(v)) >= 0


def test_sampled_labels_depend_on_the_seed_and_not_on_the_batches():
    model, data = tiny_model("qwen3"), ragged_slice()
    one, two = risk_of(model, data, 1), risk_of(model, data, 5)
    v = one.space.random("gaussian", seed=0, index=0)
    first = flat(fisher(one, 3).matvec(v))
    assert relative(flat(fisher(two, 3).matvec(v)), first) < 1e-5
    assert relative(flat(fisher(two, 4).matvec(v)), first) > 1e-3


def test_the_sampled_fisher_converges_to_the_ggn():
    model, data = tiny_model("gpt2"), ragged_slice()
    risk = risk_of(model, data, 5)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(GGNOperator(risk).matvec(v))
    # Labels of each row are drawn apart: a product on 15 copies of the rows is a mean of 15 draws.
    copies = risk_of(model, Slice(15 * data.sequences, id="copies"), 75)
    draws = np.array([flat(fisher(copies, s).matvec(v)) for s in range(20)])
    error = np.linalg.norm(draws.mean(axis=0) - truth)
    standard_error = np.sqrt((draws.var(axis=0, ddof=1) / len(draws)).sum())
    assert error < 2 * standard_error
    assert standard_error < 0.1 * np.linalg.norm(truth)
    # At the data's labels it is another matrix.
    empirical = flat(EmpiricalFisherOperator(risk).matvec(v))
    assert np.linalg.norm(empirical - truth) > 5 * standard_error
