"""Each layer and the head against their own double backward, as where the weights are never all in one place."""

import pytest
import torch
from breadth.subjects import SUBJECTS
from once import Once
from tiny import CONFIGS, ragged_slice, risk_of, tiny_model

from hesscli.curvature.layers.pull_back import pull_back
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.trust.pieces import ONCE, fault_of_pieces


def fault_of(model, only=None):
    row = risk_of(model, ragged_slice(), 3, only).first_row(most=LOOKED_AT)
    return fault_of_pieces(row, find_stack(row))


@pytest.mark.parametrize("name", CONFIGS)
def test_sound_models_have_no_fault(name):
    assert fault_of(tiny_model(name)) is None


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "albert", "llama/classes", "vit", "bloom", "mamba"])
def test_other_tasks_and_structures_have_no_fault(name):
    model, batch = SUBJECTS[name].build(), SUBJECTS[name].batch()
    named = dict(model.named_parameters())
    risk = EmpiricalRisk(
        model, [batch], names=list(named), parameters=list(named.values()), input_device=torch.device("cpu")
    )
    row = risk.first_row(most=LOOKED_AT)
    assert fault_of_pieces(row, find_stack(row)) is None


@pytest.mark.parametrize("only", ["layers.1", "lm_head", "embed_tokens", "norm"])
def test_a_selection_has_no_fault(only):
    assert fault_of(tiny_model("llama"), lambda n: only in n) is None


def test_narrow_weights_have_no_fault():
    assert fault_of(tiny_model("llama").bfloat16()) is None


@pytest.mark.parametrize("place", ["model.layers.1.mlp", "model.embed_tokens", "model.norm"])
def test_a_function_that_is_differentiable_once_is_seen_in_a_layer_before_them_and_in_the_head(place):
    model = tiny_model("llama")
    model.get_submodule(place).register_forward_hook(lambda _module, _args, out: out + 0.03 * Once.apply(out))
    assert fault_of(model) == ONCE


class WrongForward(torch.autograd.Function):
    """A square root of 1 + x^2 whose forward derivative is another's."""

    @staticmethod
    def forward(x):
        return (1 + x**2).sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x / (1 + x**2).sqrt()

    @staticmethod
    def jvp(ctx, t):
        (x,) = ctx.saved_tensors
        return t * x


@pytest.mark.parametrize("place", ["model.layers.1.mlp", "model.norm"])
def test_a_wrong_forward_derivative_is_seen_in_a_layer_and_in_the_head(place):
    model = tiny_model("llama")
    model.get_submodule(place).register_forward_hook(lambda _module, _args, out: WrongForward.apply(out))
    assert fault_of(model) == "on a short row forward mode does not agree with reverse mode"


@pytest.mark.parametrize("which", ["gradient", "second"])
def test_a_sweep_that_pulls_back_another_derivative_is_seen(which, monkeypatch):
    def wrong(*args, **kwargs):
        first, (second,) = pull_back(*args, **kwargs)
        part = first if which == "gradient" else second
        part[-1] = part[-1] * 1.001
        return first, iter([second])

    monkeypatch.setattr("hesscli.curvature.trust.pieces.pull_back", wrong)
    assert fault_of(tiny_model("llama")) == "on a short row it does not agree with double backward"


def test_a_layer_that_is_another_when_it_is_made_again_is_seen():
    model, calls = tiny_model("llama"), []

    def scale(_module, _args, out):
        calls.append(1)
        return out * (1.0 + 1e-3 * len(calls))

    model.model.layers[1].mlp.register_forward_hook(scale)
    assert "on a short row" in fault_of(model)
