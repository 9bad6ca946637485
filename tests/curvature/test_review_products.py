"""Where products were once wrong in silence, or fell over."""

import numpy as np
import pytest
import torch
from breadth.subjects import SUBJECTS
from once import Once
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.choice import choose_operator, choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.curvature.graph_memory import graph_bytes
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data import Batch, Sequence, Slice
from hesscli.errors import UsageError


def relative(a, b):
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


def whole_risk(model, batches):
    named = dict(model.named_parameters())
    return EmpiricalRisk(
        model, batches, names=list(named), parameters=list(named.values()), input_device=torch.device("cpu")
    )


@pytest.mark.parametrize("name", ["llama/classes", "gpt2/classes"])
def test_a_classifier_whose_first_row_is_one_token_is_not_taken_token_by_token(name):
    model, batch = SUBJECTS[name].build(), SUBJECTS[name].batch()
    first = Batch({"input_ids": batch.inputs["input_ids"][:1, :1]}, batch.targets[:1])
    risk = whole_risk(model, [first, batch])
    v = risk.space.random("gaussian", seed=0, index=0)
    layered = choose_operator(risk, kind="ggn", product="layered", seed=0)
    assert layered.product == "layered"
    assert relative(layered.operator.matvec(v), GGNOperator(risk).matvec(v)) < 1e-5
    exact = HessianOperator(risk, keep_graph=False).matvec(v)
    assert relative(choose_product(risk, product="layered").operator.matvec(v), exact) < 1e-5


def once_risk():
    model = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda _module, _args, out: out + 0.03 * Once.apply(out))
    return risk_of(model, ragged_slice(), 3)


@pytest.mark.parametrize(
    ("kind", "product"),
    [("hessian", "double-backward"), ("hessian", "layered"), ("ggn", "auto"), ("ggn", "layered")],
)
def test_what_is_marked_once_differentiable_has_no_exact_product(kind, product):
    with pytest.raises(UsageError, match="once_differentiable"):
        choose_operator(once_risk(), kind=kind, product=product, seed=0)


@pytest.mark.parametrize("read", ["elsewhere too", "there alone"])
def test_forward_mode_that_moves_a_constant_is_not_taken(read):
    model = tiny_model("llama")
    owner, name = (model.lm_head, "weight") if read == "elsewhere too" else (model.model.norm, "gain")
    if name == "gain":
        owner.register_parameter(name, torch.nn.Parameter(torch.tensor(2.0)))

    def scale(_module, _args, out):
        gain = getattr(owner, name)  # forward mode puts its own in this place
        with torch.no_grad():
            constant = gain.pow(2).mean().sqrt()
        return out * (1 + 0.1 * constant) + 0 * gain.sum()

    model.model.norm.register_forward_hook(scale)
    risk = risk_of(model, ragged_slice(), 3)
    with pytest.raises(UsageError, match="reverse mode"):
        choose_operator(risk, kind="ggn", product="auto", seed=0)


def test_the_graph_is_measured_on_the_longest_row():
    data = ragged_slice((4, 15))
    risk = risk_of(tiny_model("llama"), data, 1)
    alone = risk_of(risk.model, Slice((data.sequences[1],), id="x"), 1)
    batch, one = (next(iter(graph_bytes(r)[0].values())) for r in (risk, alone))
    assert batch >= one


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("product", ["auto", "layered"])
def test_weights_that_nothing_reaches_have_a_product_of_zero(kind, product):
    model = tiny_model("mixtral")
    for module in model.modules():
        if hasattr(module, "num_experts_per_tok"):
            module.num_experts_per_tok = 1
    unused = torch.nn.Parameter(torch.ones(3))
    model.register_parameter("unused", unused)
    row = Sequence({"input_ids": torch.tensor([1, 2, 3])}, torch.tensor([2, 3, -100]))
    risk = risk_of(model, Slice((row,), id="x"), 1, only=lambda n: n == "unused")
    operator = choose_operator(risk, kind=kind, product=product, seed=0).operator
    assert risk.space.norm(operator.matvec(risk.space.random("gaussian", seed=0, index=0))) == 0.0
    assert risk.space.norm(risk.gradient()) == 0.0


def test_a_layer_more_on_longer_rows_is_found_out():
    model = tiny_model("llama")
    last, forward = model.model.layers[-1], type(model.model.layers[-1]).forward
    inner = model.model.forward

    def longer(*args, **kwargs):
        out = inner(*args, **kwargs)
        if kwargs["input_ids"].shape[1] > 6:
            position = torch.arange(kwargs["input_ids"].shape[1])[None]
            rope = model.model.rotary_emb(out.last_hidden_state, position)
            out.last_hidden_state = last(out.last_hidden_state, position_embeddings=rope, attention_mask=None)
        return out

    assert forward is not None
    model.model.forward = longer
    chosen = choose_product(risk_of(model, ragged_slice((4, 12)), 1), product="layered")
    assert chosen.product == "double-backward"
    assert "as often" in chosen.why
