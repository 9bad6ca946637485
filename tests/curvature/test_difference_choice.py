"""Differences are taken where they are asked for, and else only where no product is exact."""

import numpy as np
import pytest
import torch
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.choice import choose_operator, choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.errors import UsageError


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


class Once(torch.autograd.Function):
    """The identity, with a backward that has no derivative; torch says so only where all of a graph is followed."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g.clone()


def mixed(h):
    """Attention by a kernel whose backward has no derivative."""
    h = h.unsqueeze(1)
    return (h + torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(h, h, h)[0]).squeeze(1)


def mixed_from_primitives(h):
    return h + torch.softmax(h @ h.mT / h.shape[-1] ** 0.5, dim=-1) @ h


def with_norm_behind(function):
    model = tiny_model("llama")
    forward = model.model.norm.forward
    model.model.norm.forward = lambda h: function(forward(h))
    return risk_of(model, ragged_slice(), 3)


@pytest.mark.parametrize(
    ("function", "twin", "reason"),
    [(mixed, mixed_from_primitives, "derivative for aten::"), (Once.apply, torch.clone, "once_differentiable")],
)
def test_auto_takes_differences_only_where_nothing_is_exact(function, twin, reason):
    assert choose_product(with_norm_behind(twin), product="auto").product == "double-backward"
    choice = choose_product(with_norm_behind(function), product="auto")
    assert choice.product == "finite-difference"
    assert "last resort" in choice.why
    assert reason in choice.why
    v = choice.operator.space.random("gaussian", seed=0, index=0)
    truth = HessianOperator(with_norm_behind(twin), keep_graph=False).matvec(v)
    assert relative(flat(choice.operator.matvec(v)), flat(truth)) < 1e-3


def test_an_exact_product_that_was_asked_for_is_not_replaced():
    with pytest.raises(RuntimeError, match="derivative for aten::"):
        choose_product(with_norm_behind(mixed), product="double-backward")


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_it_is_for_the_hessian_alone(kind):
    risk = risk_of(tiny_model("llama"), ragged_slice(), 3)
    assert choose_operator(risk, kind="hessian", product="finite-difference", seed=0).product == "finite-difference"
    with pytest.raises(UsageError, match="is for the Hessian"):
        choose_operator(risk, kind=kind, product="finite-difference", seed=0)
