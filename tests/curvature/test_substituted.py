"""Other tensors in the place of a model's weights: wherever the weight is read, and for the one run alone."""

import copy

import pytest
import torch
from test_hessian_truth import relative
from tiny import flat, ragged_slice, risk_of, tiny_model
from torch import nn

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.substituted import run_with


class Twice(nn.Module):
    """One module at two places, and its weight in a module of another kind; a buffer stands at both places too."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.again = self.first
        self.tied = nn.Linear(3, 1, bias=False)
        self.weight = self.first.weight
        self.first.running_mean += 0.5

    def forward(self, x):
        return self.again(self.first(x)) * self.weight - self.first.running_mean


@pytest.mark.parametrize("name", ["first.weight", "again.weight", "weight", "again.running_mean"])
def test_a_weight_is_replaced_wherever_it_is_read_and_is_there_again_afterwards(name):
    model, x = Twice().eval(), torch.randn(4, 3)
    changed, other = copy.deepcopy(model), torch.tensor([2.0, 3.0, 5.0])
    place, _, own = name.rpartition(".")
    getattr(changed.get_submodule(place), own).data.copy_(other)
    before = dict(model.state_dict(keep_vars=True))
    plain = model(x)
    assert torch.equal(run_with(model, {name: other}, (x,)), changed(x))
    assert not torch.allclose(plain, changed(x))
    assert all(held is before[key] for key, held in model.state_dict(keep_vars=True).items())
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("use", ["a loss along a line", "differences", "ggn"])
def test_nothing_stays_in_a_model_whose_embedding_stands_twice(use):
    model = tiny_model("llama")
    model.model.also = model.model.embed_tokens
    risk = risk_of(model, ragged_slice(), 2)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(HessianOperator(risk_of(tiny_model("llama"), ragged_slice(), 2), keep_graph=False).matvec(v))
    if use == "a loss along a line":
        risk.loss_along(v, 0.1)
    else:
        kind, product = ("ggn", "auto") if use == "ggn" else ("hessian", "finite-difference")
        choose_operator(risk, kind=kind, product=product, seed=0).operator.matvec(v)
    assert relative(flat(HessianOperator(risk, keep_graph=False).matvec(v)), truth) < 1e-6
