"""An adapter in float32 beside a base model in bfloat16: what is narrow decides, also where it is not selected."""

import torch
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.trust.line import mismatch_along
from hesscli.curvature.trust.preflight import check_product
from hesscli.curvature.trust.rounding import Float32Errors, is_narrow


class Adapted(torch.nn.Module):
    """A linear map with one of low rank beside it, which computes in its own dtype."""

    def __init__(self, base):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = base
        self.lora_A = torch.nn.Parameter(0.3 * torch.randn(2, base.in_features, generator=generator))
        self.lora_B = torch.nn.Parameter(0.3 * torch.randn(base.out_features, 2, generator=generator))

    def forward(self, x):
        return self.base(x) + (x.to(self.lora_A.dtype) @ self.lora_A.T @ self.lora_B.T).to(x.dtype)


def adapted(dtype):
    model = tiny_model("llama").to(dtype)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)
        layer.mlp.down_proj = Adapted(layer.mlp.down_proj)
    return risk_of(model, ragged_slice(), 5, only=lambda name: "lora" in name)


def test_the_loss_of_a_narrow_base_is_no_witness_against_a_wide_adapter():
    risk = adapted(torch.bfloat16)
    assert {p.dtype for p in risk.parameters} == {torch.float32}
    assert is_narrow(risk)
    operator = HessianOperator(risk, keep_graph=True)
    v = risk.space.random("gaussian", seed=0, index=0)
    risk.space.scale(1.0 / risk.space.norm(v), v)
    gradient, product = risk.gradient(), operator.matvec(v)
    slope, curvature = risk.space.inner(gradient, v), risk.space.inner(v, product)
    loss = risk.loss()
    found = mismatch_along(
        risk, v, loss.value, slope=slope, curvature=curvature, scales=(abs(slope), abs(curvature)), enough=0.02
    )
    assert (found.slope, found.curvature) == (None, None)
    check_product(operator, risk, loss=loss, gradient=gradient, semi_definite=False, seed=0)
    assert 1e-3 < Float32Errors(operator, risk, "hessian", 0).sampled().largest < 0.05


def test_differences_of_an_adapter_compute_in_float32():
    risk = adapted(torch.bfloat16)
    v = risk.space.random("gaussian", seed=0, index=0)
    wide = adapted(torch.bfloat16)
    wide.model.float()
    exact = flat(HessianOperator(wide, keep_graph=False).matvec(v))
    found = flat(FiniteDifferenceOperator(risk, scheme="central").matvec(v))
    assert abs(found - exact).max() < 2e-3 * abs(exact).max()
