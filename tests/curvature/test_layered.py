"""The layered product: exact, below a gradient's memory, and it gives way where it does not understand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from live_bytes import peak_of
from tiny import CONFIGS, dense_hessian, flat, ragged_slice, risk_of, tiny_model
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from hesscli.curvature.choice import choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import OuterProductOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import UnknownStructureError, find_stack
from hesscli.curvature.score_curvature import LabelCurvature, SampledLabelCurvature, SoftmaxCurvature
from hesscli.data import Sequence, Slice


def layered(risk):
    return LayeredOperator(risk, find_stack(risk.first_row()))


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_product_is_the_dense_hessian_times_the_vector(name, batch_size):
    risk = risk_of(tiny_model(name), ragged_slice(), batch_size)
    v = risk.space.random("gaussian", seed=0, index=0)
    assert relative(flat(layered(risk).matvec(v)), dense_hessian(name) @ flat(v)) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_several_vectors_at_once_give_what_each_gives_alone(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 2)
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(3)]
    for part in vs[1][2:]:
        part.zero_()  # what is not moved is left out, and the others are not
    for v, product in zip(vs, layered(risk).matvecs(vs), strict=True):
        assert relative(flat(product), dense_hessian(name) @ flat(v)) < 1e-5


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("curvature", [SoftmaxCurvature(), LabelCurvature(), SampledLabelCurvature(seed=3)])
def test_gauss_newton_layer_by_layer_is_the_matrix_of_the_whole_graph(curvature, together):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 2)
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(2)]
    operator = LayeredOperator(risk, find_stack(risk.first_row()), curvature)
    products = operator.matvecs(vs) if together else [operator.matvec(v) for v in vs]
    for product, truth in zip(products, OuterProductOperator(risk, curvature).matvecs(vs), strict=True):
        assert relative(flat(product), flat(truth)) < 1e-6


@pytest.mark.parametrize("only", [".mlp.", "embed_tokens", "layers.1", "norm"])
def test_selected_parameters_give_the_diagonal_block(only):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 2, only=lambda n: only in n)
    v = risk.space.random("gaussian", seed=0, index=0)
    truth = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    assert relative(flat(layered(risk).matvec(v)), truth) < 1e-5


def test_the_head_in_chunks_of_one_token_gives_the_same_product(monkeypatch):
    monkeypatch.setattr("hesscli.curvature.losses._CHUNK", 1)
    risk = risk_of(tiny_model("gemma3"), ragged_slice(), 2)
    v = risk.space.random("gaussian", seed=0, index=0)
    assert relative(flat(layered(risk).matvec(v)), dense_hessian("gemma3") @ flat(v)) < 1e-5


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    risk = risk_of(model, ragged_slice(), 2)
    before = [p.detach().clone() for p in model.parameters()]
    layered(risk).matvec(risk.space.random("gaussian", seed=0, index=0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all("forward" not in layer.__dict__ for layer in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("count", [1, 2])
def test_a_custom_function_without_a_forward_derivative_is_pushed_through_in_reverse(count):
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=19, hidden_size=8, n_layer=2, n_head=2, initializer_range=0.3))
    risk = risk_of(model.eval(), ragged_slice(), 2)
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(count)]
    truth = HessianOperator(risk, keep_graph=False).matvecs(vs)
    for product, exact in zip(layered(risk).matvecs(vs), truth, strict=True):
        assert relative(flat(product), flat(exact)) < 1e-5


def test_a_layer_that_runs_twice_is_pulled_back_twice():
    model = tiny_model("llama")
    model.model.layers[1] = model.model.layers[0]
    agrees_with_double_backward(risk_of(model, ragged_slice(), 2))


def test_what_is_computed_between_two_layers_is_pulled_back_too():
    model = tiny_model("llama")
    original = type(model.model.layers[0]).__call__
    scale = torch.linspace(0.5, 1.5, 8)
    try:
        type(model.model.layers[0]).__call__ = lambda self, h, **rest: original(self, torch.tanh(h) * scale, **rest)
        agrees_with_double_backward(risk_of(model, ragged_slice(), 2))
    finally:
        type(model.model.layers[0]).__call__ = original


def agrees_with_double_backward(risk):
    v = risk.space.random("gaussian", seed=0, index=0)
    exact = HessianOperator(risk, keep_graph=False).matvec(v)
    assert relative(flat(layered(risk).matvec(v)), flat(exact)) < 1e-5
    assert choose_product(risk, product="layered").product == "layered"


def test_a_model_without_a_list_of_layers_is_refused_and_gives_way():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = torch.nn.Embedding(19, 4), torch.nn.Linear(4, 19)

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=self.out(torch.tanh(self.embed(input_ids))))

    torch.manual_seed(0)
    risk = risk_of(Net(), ragged_slice(), 2)
    with pytest.raises(UnknownStructureError, match="no list of layers"):
        find_stack(risk.first_row())
    choice = choose_product(risk, product="layered")
    assert choice.product == "double-backward"
    assert "layered is not possible" in choice.why


@pytest.mark.slow
def test_a_product_needs_less_memory_than_a_gradient():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 8192, (8, 256))
    rows = [Sequence({"input_ids": r}, torch.cat([r[1:], torch.tensor([-100])])) for r in ids]
    risk = risk_of(model, Slice(tuple(rows), id="x"), 8)
    v = risk.space.random("gaussian", seed=0, index=0)
    operator, result = layered(risk), risk.space.vector_bytes()
    gradient = peak_of(risk.gradient) - result
    product = peak_of(lambda: operator.matvec(v)) - result
    assert product <= 0.75 * gradient
