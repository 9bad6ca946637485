"""Faults of a model's own code that leave a product symmetric, linear and the same twice: which check sees each."""

import pytest
import torch
from once import Once
from tiny import flat, ragged_slice, risk_of, rows_of, tiny_model

from hesscli.curvature import gauss_newton
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.trust.float64 import Float64Errors
from hesscli.curvature.trust.preflight import check_product
from hesscli.curvature.trust.wide import float64_throughout, widened
from hesscli.errors import UntrustworthyError

SHARE = 0.02  # of the final norm's output: a fault that differences in float32 do not tell from rounding


class Tanh(Once):
    """With a backward that takes what it saved for a constant: right once, and wrong twice."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x.detach()) ** 2)


class Doubled(torch.autograd.Function):
    """tanh whose forward derivative is twice what it is."""

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(output)
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return 2 * g * (1 - y**2)

    @staticmethod
    def jvp(ctx, t):
        (y,) = ctx.saved_tensors
        return 2 * t * (1 - y**2)


def behind_the_norm(change):
    model = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda _module, _args, out: out + SHARE * change(out))
    return risk_of(model, ragged_slice(), 3)


def of_data(out):
    return out.data.sin()  # the loss depends on it, and no derivative does


def asked(risk, kind="hessian"):
    """The preflight of a run: the checks in float32, then those in float64."""
    operator = choose_operator(risk, kind=kind, product="auto", seed=0).operator
    found = check_product(
        operator, risk, loss=risk.loss(), gradient=risk.gradient(), semi_definite=kind != "hessian", seed=0
    )
    return found, Float64Errors(operator, risk, kind, 0)


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        (Tanh.apply, "hessian", "curvature error of the product"),
        (of_data, "hessian", "slope error of the gradient"),
        (of_data, "ggn", "slope error of the gradient"),
        (Doubled.apply, "ggn", "slope error of the gradient"),
    ],
)
def test_what_is_not_the_derivative_is_seen_in_float64_alone(change, kind, word):
    found, wider = asked(behind_the_norm(change), kind)
    with pytest.raises(UntrustworthyError, match=word) as caught:
        wider.preflight(found)
    assert max(caught.value.found.slope or 0, caught.value.found.curvature or 0) < 0.1


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical-fisher"])
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_the_derivative_is_seen_to_be_with_kinks_too(kind, relu):
    change = torch.relu if relu else torch.tanh
    found, wider = asked(behind_the_norm(change), kind)
    better = wider.preflight(found)
    assert better.slope < 1e-6
    assert better.curvature < 1e-6


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_a_gauss_newton_matrix_of_other_scores_is_seen(kind, monkeypatch):
    # The matrix is symmetric, semi-definite and zero along symmetries, at any size.
    right = gauss_newton.curve_all
    monkeypatch.setattr(gauss_newton, "curve_all", lambda *given: 1.01 * right(*given))
    risk = risk_of(tiny_model("llama"), ragged_slice(), 3)
    found, wider = asked(risk, kind)
    with pytest.raises(UntrustworthyError, match=r"curvature error of the product against the loss is 0\.0099"):
        wider.preflight(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sign_error_is_seen_where_nothing_wider_can_be_asked(dtype, monkeypatch):
    # -G is symmetric, linear and zero along symmetries, and in float32 as in bfloat16.
    risk = risk_of(tiny_model("llama").to(dtype), ragged_slice(), 3)
    operator = gauss_newton.GGNOperator(risk)
    given = {"loss": risk.loss(), "gradient": risk.gradient(), "semi_definite": True, "seed": 0}
    check_product(operator, risk, **given)
    right = gauss_newton.curve_all
    monkeypatch.setattr(gauss_newton, "curve_all", lambda *rest: -right(*rest))
    with pytest.raises(UntrustworthyError, match=r"u\.Gu is negative"):
        check_product(operator, risk, **given)


def test_scores_in_bfloat16_are_an_error_of_the_product():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _module, _args, out: out.to(torch.bfloat16).float())
    risk = risk_of(model, ragged_slice(), 3)
    operator = HessianOperator(risk, keep_graph=False)
    v = risk.space.random("gaussian", seed=3, index=0)
    clean = HessianOperator(risk_of(tiny_model("llama").double(), ragged_slice(), 3), keep_graph=False)
    with float64_throughout():
        truth = flat(clean.matvec([part.double() for part in v]))
    true = float(((flat(operator.matvec(v)) - truth) ** 2).sum() / (truth**2).sum()) ** 0.5
    (stated,) = Float64Errors(operator, risk, "hessian", 0).along([v])
    assert true > 1e-4
    assert true / 3 < stated < 3 * true


def equal_rows():
    return rows_of(torch.randint(3, 19, (4, 6), generator=torch.Generator().manual_seed(0)))


def test_rows_of_a_batch_that_see_one_another_are_caught_without_padding():
    model = tiny_model("llama")
    risk = risk_of(model, equal_rows(), 4)
    asked(risk)
    model.model.norm.register_forward_hook(lambda _module, _args, out: out - 0.3 * out.mean(dim=0, keepdim=True))
    with pytest.raises(UntrustworthyError, match="rows of a batch see one another; use --batch-size 1"):
        asked(risk)


def test_a_buffer_that_each_pass_changes_a_little_is_caught():
    model = tiny_model("llama")
    norm = model.model.norm
    norm.register_buffer("seen", torch.ones(1))

    def counting(_module, _args, out):
        norm.seen.mul_(1 + 1e-6)  # far below what two losses are let differ by, and it adds up
        return out * norm.seen.clone()

    norm.register_forward_hook(counting)
    with pytest.raises(UntrustworthyError, match=r"a pass changes the buffer 'model\.norm\.seen'"):
        asked(risk_of(model, ragged_slice(), 3))


def test_a_buffer_that_is_written_anew_with_the_same_is_no_fault():
    model = tiny_model("llama")
    norm = model.model.norm
    norm.register_buffer("length", torch.ones(1))
    norm.register_forward_hook(lambda _module, _args, out: norm.length.fill_(out.shape[1]) and None)
    asked(risk_of(model, ragged_slice(), 3))


def test_the_widened_copy_leaves_the_model_as_it_was():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 3)
    widened(risk, risk.batches, torch.float64)
    assert {p.dtype for p in risk.model.parameters()} == {torch.float32}
