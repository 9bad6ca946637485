"""The product against the dense Hessian of eight architectures, built by other code; and what must not change it."""

import numpy as np
import pytest
import torch
from tiny import CONFIGS, dense_hessian, flat, plain_loss, ragged_slice, risk_of, tiny_model, unflat

from hesscli.curvature.choice import choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.graph_memory import graph_bytes
from hesscli.data import IGNORED, Sequence, Slice

# Products are exact up to float32 rounding; 1e-5 is about 30 times what is seen.
TOLERANCE = 1e-5


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("keep_graph", [True, False])
def test_product_is_the_dense_hessian_times_the_vector(name, keep_graph):
    risk = risk_of(tiny_model(name), ragged_slice(), 2)
    operator = HessianOperator(risk, keep_graph=keep_graph)
    v, w = (risk.space.random("gaussian", seed=0, index=i) for i in range(2))
    dense = dense_hessian(name)
    for product, vector in zip(operator.matvecs([v, w]), (v, w), strict=True):
        assert relative(flat(product), dense @ flat(vector)) < TOLERANCE
    # The second use of a kept graph is the test: the first made it.
    assert relative(flat(operator.matvec(v)), dense @ flat(v)) < TOLERANCE


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "mixtral"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_product_does_not_depend_on_the_batch_size(name, batch_size):
    risk = risk_of(tiny_model(name), ragged_slice(), batch_size)
    v = risk.space.random("gaussian", seed=0, index=0)
    product = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    assert relative(product, dense_hessian(name) @ flat(v)) < TOLERANCE


@pytest.mark.parametrize("extra", [1, 6])
def test_product_does_not_depend_on_padding(extra):
    data = ragged_slice()
    padded = []
    for row in data.sequences:
        n = row.targets.numel()
        padded.append(
            Sequence(
                {
                    "input_ids": torch.cat([row.inputs["input_ids"], torch.full((extra,), 5)]),
                    "attention_mask": torch.cat([torch.ones(n), torch.zeros(extra)]).long(),
                },
                torch.cat([row.targets, torch.full((extra,), IGNORED)]),
            )
        )
    risk = risk_of(tiny_model("llama"), Slice(tuple(padded), id="padded"), 3)
    v = risk.space.random("gaussian", seed=0, index=0)
    product = flat(HessianOperator(risk, keep_graph=False).matvec(v))
    assert relative(product, dense_hessian("llama") @ flat(v)) < TOLERANCE


def test_the_order_of_rows_does_not_change_the_product():
    data = ragged_slice()
    turned = Slice(data.sequences[::-1], id="turned")
    risk = risk_of(tiny_model("llama"), turned, 2)
    v = risk.space.random("gaussian", seed=0, index=0)
    assert (
        relative(flat(HessianOperator(risk, keep_graph=True).matvec(v)), dense_hessian("llama") @ flat(v)) < TOLERANCE
    )
    assert turned.fingerprint != data.fingerprint


def test_sdpa_attention_gives_the_eager_product():
    risk = risk_of(tiny_model("llama", attention="sdpa"), ragged_slice(), 2)
    v = risk.space.random("gaussian", seed=0, index=0)
    assert (
        relative(flat(HessianOperator(risk, keep_graph=True).matvec(v)), dense_hessian("llama") @ flat(v)) < TOLERANCE
    )


def test_selected_parameters_give_the_diagonal_block():
    model = tiny_model("llama")
    kept = [".mlp." in n for n, _ in model.named_parameters()]
    risk = risk_of(model, ragged_slice(), 2, only=lambda n: ".mlp." in n)
    places = np.concatenate([np.full(p.numel(), k) for k, p in zip(kept, model.parameters(), strict=True)])
    dense = dense_hessian("llama")[np.ix_(places, places)]
    v = risk.space.random("gaussian", seed=0, index=0)
    assert relative(flat(HessianOperator(risk, keep_graph=False).matvec(v)), dense @ flat(v)) < TOLERANCE


def test_a_parameter_that_the_loss_does_not_reach_has_zero_rows():
    model = tiny_model("llama")
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    risk = risk_of(model, ragged_slice(), 2)
    place = risk.space.names.index("unused")
    operator = HessianOperator(risk, keep_graph=True)
    product = operator.matvec(risk.space.random("gaussian", seed=0, index=0))
    assert not product[place].any()
    assert any(p.any() for p in product)


@pytest.mark.parametrize("changed", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"])
@pytest.mark.parametrize("unseen", [False, True])
def test_a_kept_graph_is_made_again_after_a_weight_changed_in_place(changed, unseen):
    model = tiny_model("llama")
    risk = risk_of(model, ragged_slice(), 2)
    operator = HessianOperator(risk, keep_graph=True)
    v = risk.space.random("gaussian", seed=0, index=0)
    before = flat(operator.matvec(v))
    with torch.no_grad():
        weight = model.get_parameter(changed)
        (weight.data if unseen else weight).mul_(1.1)  # torch counts no change that is made through `data`
    after = flat(operator.matvec(v))
    assert relative(after, before) > 1e-3
    assert relative(after, flat(HessianOperator(risk, keep_graph=False).matvec(v))) < 1e-6


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_loss_and_gradient_are_the_plain_ones(name):
    model, data = tiny_model(name), ragged_slice()
    risk = risk_of(model, data, 3)
    loss = plain_loss(model, data)
    assert risk.loss().value == pytest.approx(float(loss), rel=1e-6)
    truth = flat(torch.autograd.grad(loss, list(model.parameters())))
    assert relative(flat(risk.gradient()), truth) < TOLERANCE


def test_loss_stderr_is_that_of_a_ratio_over_rows():
    model, data = tiny_model("gpt2"), ragged_slice()
    sums = [float(plain_loss(model, Slice((row,), id="row"))) * row.num_terms for row in data.sequences]
    counts = np.array([row.num_terms for row in data.sequences])
    mean = sum(sums) / counts.sum()
    residuals = np.array(sums) - mean * counts
    truth = np.sqrt((residuals**2).sum() * 5 / 4) / counts.sum()
    assert risk_of(model, data, 2).loss().stderr == pytest.approx(truth, rel=1e-4)


def test_gpt2_in_float64_is_exact_to_float64():
    model, data = tiny_model("gpt2").double(), ragged_slice()
    risk = risk_of(model, data, 2)
    assert risk.space.dtype == torch.float64
    v = [x.double() for x in unflat(np.random.default_rng(0).standard_normal(risk.space.dimension), risk.space)]
    parameters = list(model.parameters())
    total = 0.0
    for row in data.sequences:
        keep = row.targets != IGNORED
        logits = model(row.inputs["input_ids"][None]).logits[0][keep]
        total = total + torch.nn.functional.cross_entropy(logits, row.targets[keep], reduction="sum")
    gradient = torch.autograd.grad(total / data.num_terms, parameters, create_graph=True)
    slope = sum((g * x).sum() for g, x in zip(gradient, v, strict=True))
    truth = flat(torch.autograd.grad(slope, parameters))
    assert relative(flat(HessianOperator(risk, keep_graph=False).matvec(v)), truth) < 1e-13


@pytest.mark.parametrize(
    ("free", "product", "word"),
    [
        (1 << 34, "double-backward", "2 gradients"),
        (1 << 20, "double-backward", "3 gradients"),
        (1 << 16, "layered", "4 g"),
    ],
)
def test_auto_takes_the_fastest_product_that_measured_memory_allows(monkeypatch, free, product, word):
    risk = risk_of(tiny_model("llama"), ragged_slice((16,) * 12), 1)
    monkeypatch.setattr("hesscli.curvature.choice.available_bytes", lambda _device: free)
    choice = choose_product(risk, product="auto")
    assert choice.product == product
    assert word in choice.why


def test_the_measured_graph_is_what_autograd_saves():
    risk = risk_of(tiny_model("llama"), ragged_slice((16,) * 12), 3)
    batch, everything = (next(iter(b.values())) for b in graph_bytes(risk))
    gradient = 4 * risk.space.dimension
    assert (everything - 4 * gradient) == pytest.approx(4 * (batch - gradient), rel=1e-3)
    one, _ = (next(iter(b.values())) for b in graph_bytes(risk_of(risk.model, ragged_slice((16,)), 1)))
    assert one - gradient == pytest.approx((batch - gradient) / 3, rel=0.02)
