"""One sweep for every place that weights may be in: what it gives where they are all resident."""

import pytest
import torch
from live_bytes import LiveBytes
from tiny import CONFIGS, VOCAB, deep_llama, flat, ragged_slice, risk_of, rows_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.push_layer import LayerPush
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.layers.sweep import Sweep


def swept(risk, vs=(), *, with_gradient=True):
    """The gradient and the products of one sweep over all batches."""
    gradient, totals = risk.space.zeros() if with_gradient else None, [risk.space.zeros() for _ in vs]
    with risk.residence.outside() as outside:
        stack, pushes = find_stack(risk.first_row()), (LayerPush(), LayerPush())
        sweep = Sweep(risk, stack, None, pushes, list(vs), totals, outside=outside, gradient=gradient)
        for batch in risk.batches:
            sweep.add(batch)
    for total in [*totals, *([gradient] if gradient else [])]:
        risk.space.scale(1.0 / risk.num_terms, total)
    return gradient, totals


def relative(a, b):
    return float(((flat(a) - flat(b)) ** 2).sum() / (flat(b) ** 2).sum()) ** 0.5


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sweep_without_tangents_gives_the_gradient(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 2)
    assert relative(swept(risk)[0], risk.gradient()) < 1e-6


def test_a_sweep_with_vectors_gives_the_gradient_and_the_same_products():
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 2)
    vs = [risk.space.random("gaussian", seed=0, index=i) for i in range(2)]
    gradient, products = swept(risk, vs)
    assert relative(gradient, risk.gradient()) < 1e-6
    for product, alone in zip(products, swept(risk, vs, with_gradient=False)[1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(product, alone, strict=True))


def test_a_gradient_of_selected_parameters_is_that_part_of_the_whole():
    whole = risk_of(tiny_model("qwen3"), ragged_slice(), 2)
    some = risk_of(tiny_model("qwen3"), ragged_slice(), 2, only=lambda n: "embed" in n or "layers.0.mlp" in n)
    parts = dict(zip(whole.space.names, whole.gradient(), strict=True))
    assert relative(swept(some)[0], [parts[name] for name in some.space.names]) < 1e-6


def narrow_risk(layers):
    """Of a bfloat16 model most of whose weights are in its layers."""
    return risk_of(deep_llama(layers).bfloat16(), rows_of(torch.arange(8)[None] % VOCAB), 1)


def test_narrow_weights_get_a_vector_in_their_dtype_one_layer_at_a_time():
    above, layer = {}, 0
    for layers in (3, 9):
        risk = narrow_risk(layers)
        layer = sum(p.nbytes for p in risk.model.model.layers[0].parameters())
        operator, v = LayeredOperator(risk, find_stack(risk)), risk.space.random("gaussian", seed=0, index=0)
        operator.matvec(v)
        with LiveBytes(risk.parameters) as count:
            operator.matvec(v)
        above[layers] = count.peak - risk.space.vector_bytes()  # the result
    assert above[9] - above[3] < layer


class ReadsALayersWeight(torch.nn.Module):
    """A model whose first layer's weight is read in front of the layers and behind them too."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, attention_mask=None):
        scale = self.model.model.layers[0].mlp.up_proj.weight.square().mean()
        embedded = self.model.get_input_embeddings()(input_ids) + scale
        found = self.model(inputs_embeds=embedded, attention_mask=attention_mask)
        return type(found)(logits=found.logits * scale)


def test_a_weight_that_a_layer_and_what_is_outside_both_read_counts_both():
    risk = risk_of(ReadsALayersWeight(tiny_model("llama")), ragged_slice(), 2)
    v = risk.space.random("gaussian", seed=0, index=0)
    assert (
        relative(
            LayeredOperator(risk, find_stack(risk.first_row())).matvec(v),
            HessianOperator(risk, keep_graph=False).matvec(v),
        )
        < 1e-5
    )
