"""The layered product gives way, and never disagrees in silence, where a model is not the stack that it seems."""

import numpy as np
import pytest
import torch
from tiny import ragged_slice, risk_of, tiny_model
from transformers import AutoModelForCausalLM, MarianConfig

from hesscli.curvature.choice import choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.graph_memory import graph_bytes
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.trust import soundness
from hesscli.data import IGNORED, Sequence, Slice


def parts_differ(product, truth):
    return max(float((p - t).norm()) for p, t in zip(product, truth, strict=True)) / max(float(t.norm()) for t in truth)


def products(risk):
    v = risk.space.random("gaussian", seed=0, index=0)
    exact = HessianOperator(risk, keep_graph=False).matvec(v)
    return LayeredOperator(risk, find_stack(risk.first_row())).matvec(v), exact


def test_a_weight_that_the_model_reads_without_a_gradient_is_a_constant():
    # Marian's sinusoidal positions are a parameter, looked up under no_grad, which stops no forward derivative.
    torch.manual_seed(1)
    config = MarianConfig(
        vocab_size=19,
        d_model=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        pad_token_id=0,
        init_std=0.3,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    assert parts_differ(*products(risk_of(model, ragged_slice(), 3))) < 1e-5


def test_a_weight_that_two_layers_share_gets_the_sum_of_both():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert parts_differ(*products(risk_of(model, ragged_slice(), 2))) < 1e-5


def test_a_weight_of_a_layer_that_the_head_reads_too_gets_the_sum_of_both():
    model = tiny_model("llama")
    model.model.norm.weight = model.model.layers[1].input_layernorm.weight
    assert parts_differ(*products(risk_of(model, ragged_slice(), 2))) < 1e-5


def test_a_weight_that_a_layer_reads_without_owning_it_is_found_out():
    model = tiny_model("llama")
    first, forward = model.model.layers[0], type(model.model.layers[0]).forward
    first.forward = lambda h, **rest: forward(first, h * model.model.layers[1].input_layernorm.weight, **rest)
    chosen = choose_product(risk_of(model, ragged_slice(), 2), product="layered")
    assert chosen.product == "double-backward"
    assert "does not agree with double backward" in chosen.why


@pytest.mark.parametrize("product", ["auto", "layered"])
def test_a_first_row_without_a_loss_term_is_passed_over(product):
    rows = list(ragged_slice().sequences)
    rows[0] = Sequence(rows[0].inputs, torch.full_like(rows[0].targets, IGNORED))
    risk = risk_of(tiny_model("llama"), Slice(tuple(rows), id="x"), 1)
    v = risk.space.random("gaussian", seed=0, index=0)
    product = choose_product(risk, product=product).operator.matvec(v)
    assert parts_differ(product, HessianOperator(risk, keep_graph=False).matvec(v)) < 1e-5
    assert all(np.isfinite(list(sizes.values())).all() for sizes in graph_bytes(risk))


def test_the_check_looks_at_the_positions_about_the_first_term(monkeypatch):
    monkeypatch.setattr(soundness, "LOOKED_AT", 4)
    rows = list(ragged_slice((15, 5)).sequences)
    rows[0].targets[:11] = IGNORED
    risk = risk_of(tiny_model("qwen3"), Slice(tuple(rows), id="x"), 2)
    chosen = choose_product(risk, product="layered")
    assert chosen.product == "layered"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layered_is_taken_in_other_dtypes(dtype):
    risk = risk_of(tiny_model("llama").to(dtype), ragged_slice(), 2)
    assert choose_product(risk, product="layered").product == "layered"
