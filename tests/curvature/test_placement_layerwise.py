"""Weights on several devices: the hooks that accelerate puts between them, here all on the host."""

import pytest
from accelerate import dispatch_model
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.choice import choose_operator

PARTS = ["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]


@pytest.fixture(scope="module")
def pair():
    """The risk of a tied model as it is, and of the same model with hooks on every module."""
    hooked = dispatch_model(tiny_model("qwen3"), dict.fromkeys(PARTS, "cpu"), force_hooks=True)
    assert all(hasattr(layer.mlp.up_proj, "_hf_hook") for layer in hooked.model.layers)
    return risk_of(tiny_model("qwen3"), ragged_slice(), 2), risk_of(hooked, ragged_slice(), 2)


def relative(a, b):
    return float(((flat(a) - flat(b)) ** 2).sum() / (flat(b) ** 2).sum()) ** 0.5


def test_loss_and_gradient_are_those_of_one_device(pair):
    one, several = pair
    assert several.loss() == one.loss()
    assert relative(several.gradient(), one.gradient()) < 1e-6
    assert several.space.dimension == one.space.dimension


@pytest.mark.parametrize("product", ["double-backward", "layered"])
def test_exact_products_are_those_of_one_device(pair, product):
    one, several = pair
    vs = [one.space.random("gaussian", seed=0, index=i) for i in range(2)]
    truth = choose_operator(one, kind="hessian", product="double-backward", seed=0).operator.matvecs(vs)
    choice = choose_operator(several, kind="hessian", product=product, seed=0)
    assert choice.product == product
    for found, exact in zip(choice.operator.matvecs(vs), truth, strict=True):
        assert relative(found, exact) < 1e-5


@pytest.mark.parametrize("kind", ["ggn", "fisher"])
@pytest.mark.parametrize("product", ["auto", "layered"])
def test_gauss_newton_products_are_those_of_one_device(pair, kind, product):
    one, several = pair
    v = one.space.random("gaussian", seed=0, index=0)
    truth = choose_operator(one, kind=kind, product="auto", seed=1).operator.matvec(v)
    assert relative(choose_operator(several, kind=kind, product=product, seed=1).operator.matvec(v), truth) < 1e-5


def test_finite_differences_are_within_the_error_that_they_report(pair):
    one, several = pair
    v = one.space.random("gaussian", seed=0, index=0)
    truth = choose_operator(one, kind="hessian", product="double-backward", seed=0).operator.matvec(v)
    found = choose_operator(several, kind="hessian", product="finite-difference", seed=0).operator.difference(v)
    assert relative(found.product, truth) < 3 * found.error


def test_layers_keep_their_hooks(pair):
    _, several = pair
    before = [layer.forward for layer in several.model.model.layers]
    choose_operator(several, kind="hessian", product="layered", seed=0).operator.matvec(several.space.zeros())
    assert [layer.forward for layer in several.model.model.layers] == before
