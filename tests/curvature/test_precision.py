"""float64 that is none inside is said to be none, and the product's error shows it."""

import pytest
import torch
from tiny import CONFIGS, ragged_slice, risk_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.trust.precision import narrow_inside


@pytest.mark.parametrize("name", CONFIGS)
def test_the_warning_comes_where_products_have_more_error_than_float64_has(name):
    risk = risk_of(tiny_model(name).double(), ragged_slice(), 5)
    u, v = (risk.space.random("gaussian", seed=0, index=i) for i in range(2))
    hu, hv = HessianOperator(risk, keep_graph=False).matvecs([u, v])
    asymmetry = abs(risk.space.inner(u, hv) - risk.space.inner(v, hu)) / risk.space.norm(hv) / risk.space.norm(u)
    # Gemma 3's is NaN: its mask for float64 is infinite in float32, where its softmax is taken.
    assert (narrow_inside(risk) is None) == (asymmetry <= 1e-12)


def test_float32_is_what_it_says():
    assert narrow_inside(risk_of(tiny_model("llama"), ragged_slice(), 5)) is None


def test_the_data_may_be_narrow_without_a_warning():
    risk = risk_of(tiny_model("gpt2").double(), ragged_slice(), 5)
    assert narrow_inside(risk) is None
    assert risk.terms(risk.batches[0]).dtype == torch.float64
