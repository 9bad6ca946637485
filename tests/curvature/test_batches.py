"""Quadratic forms batch by batch, against derivatives of a plain loss along the vector."""

import numpy as np
import pytest
import torch
from tiny import plain_loss, ragged_slice, risk_of, tiny_model

from hesscli.curvature.batches import batch_quadratic_forms, groups_of_rows
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.data import Slice
from hesscli.linalg.statistics import ratio_estimate


def unit(space, index):
    v = space.random("gaussian", seed=5, index=index)
    space.scale(1 / space.norm(v), v)
    return v


def second_derivative(model, rows, v):
    """Of the mean loss over rows along v, by autograd on code of its own."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(plain_loss(model, Slice(tuple(rows), id="rows")), parameters, create_graph=True)
    slope = sum((g * x).sum() for g, x in zip(gradient, v, strict=True))
    back = torch.autograd.grad(slope, parameters, allow_unused=True)
    return float(sum((b * x).sum() for b, x in zip(back, v, strict=True) if b is not None))


def test_a_form_of_each_batch_is_the_second_derivative_of_its_loss():
    model, data = tiny_model("llama"), ragged_slice()
    risk = risk_of(model, data, 2)
    vectors = [unit(risk.space, i) for i in range(2)]
    forms = batch_quadratic_forms(HessianOperator(risk, keep_graph=True), risk, risk.batches, vectors)
    for batch, row in zip((data.sequences[:2], data.sequences[2:4], data.sequences[4:]), forms, strict=True):
        expected = [second_derivative(model, batch, v) for v in vectors]
        assert row == pytest.approx(expected, rel=2e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "product"),
    [
        *(("hessian", p) for p in ("double-backward", "layered", "finite-difference")),
        ("ggn", "auto"),
        ("fisher", "auto"),
    ],
)
def test_the_mean_over_loss_terms_is_the_form_of_the_slice(kind, product):
    risk = risk_of(tiny_model("llama"), ragged_slice(), 5)
    operator = choose_operator(risk, kind=kind, product=product, seed=0).operator
    v = unit(risk.space, 0)
    groups = groups_of_rows(risk.batches, at_least=16)
    terms = np.array([b.num_terms for b in groups], dtype=float)
    forms = batch_quadratic_forms(operator, risk, groups, [v])[:, 0]
    whole = risk.space.inner(v, operator.matvec(v))
    assert ratio_estimate(terms * forms, terms).value == pytest.approx(whole, rel=2e-3 if "fin" in product else 1e-4)


def test_rows_are_grouped_as_finely_as_asked_and_lose_nothing():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 4)
    assert [len(b.targets) for b in groups_of_rows(risk.batches, at_least=2)] == [2, 2, 1]
    rows = groups_of_rows(risk.batches, at_least=16)
    assert [len(b.targets) for b in rows] == [1] * 5
    assert [b.first_row for b in rows] == [0, 1, 2, 3, 4]
    assert sum(b.num_terms for b in rows) == risk.num_terms
