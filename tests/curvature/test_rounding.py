"""What narrow weights do to a product is measured, and stands in the report or refuses the run."""

import numpy as np
import pytest
import torch
from tiny import flat, ragged_slice, risk_of, tiny_model
from trained import trained_risk
from wide import float64_product

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries import find_symmetry
from hesscli.curvature.trust.float64 import Float64Errors
from hesscli.curvature.trust.preflight import Preflight
from hesscli.curvature.trust.product_errors import Rounding
from hesscli.curvature.trust.rounding import Float32Errors, check_rounding, is_narrow
from hesscli.errors import UntrustworthyError

PASSED = Preflight(0.0, 0.0, 0.0, None, None, None)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_it_is_the_error_of_a_layered_product_along_random_vectors_and_eigenvectors(name):
    risk = risk_of(tiny_model(name).bfloat16(), ragged_slice(), 3)
    operator = choose_operator(risk, kind="hessian", product="layered", seed=0).operator
    error = Float32Errors(operator, risk, "hessian", 0).sampled().largest
    truth = float64_product(name, dtype=torch.bfloat16)
    for index in range(3):
        v = risk.space.random("gaussian", seed=9, index=index)
        for _ in range(3):  # the last leans to the ends of the spectrum
            found = operator.matvec(v)
            assert error / 3 < relative(flat(found), truth(v)) < 3 * error
            v = found


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical-fisher"])
def test_every_matrix_has_one_and_wide_weights_have_none_to_speak_of(kind):
    for dtype, low, high in ((torch.bfloat16, 3e-3, 0.05), (torch.float32, -1.0, 1e-5)):
        risk = risk_of(tiny_model("llama").to(dtype), ragged_slice(), 3)
        assert is_narrow(risk) == (dtype == torch.bfloat16)
        operator = choose_operator(risk, kind=kind, product="auto", seed=0).operator
        assert low < Float32Errors(operator, risk, kind, 0).sampled().largest < high
        assert {p.dtype for p in risk.model.parameters()} == {dtype}


def test_a_trained_model_is_refused_where_its_symmetries_see_nothing():
    risk = trained_risk(2, 32, dtype=torch.bfloat16)
    wide = trained_risk(2, 32, dtype=torch.bfloat16)
    wide = EmpiricalRisk(
        wide.model.float(),
        wide.batches,
        names=wide.space.names,
        parameters=list(wide.model.parameters()),
        input_device=wide.input_device,
    )
    operator, exact = HessianOperator(risk, keep_graph=True), HessianOperator(wide, keep_graph=True)
    gradient = risk.gradient()
    symmetry = find_symmetry(risk, gradient, seed=0)
    seen = relative(flat(operator.matvec(symmetry.direction(risk))), flat(symmetry.answer(risk, gradient)))
    v = risk.space.random("gaussian", seed=9, index=0)
    true = relative(flat(operator.matvec(v)), flat(exact.matvec(v)))
    found = Float32Errors(operator, risk, "hessian", 0).sampled()
    assert true > 3 * seen
    assert true / 3 < found.random < 3 * true
    remedy = r"use --dtype float32, or --product finite-difference, which computes in it$"
    with pytest.raises(UntrustworthyError, match=rf"rounding error of the product is .*; {remedy}") as caught:
        check_rounding(PASSED, found, differences=True)
    assert (caught.value.found.rounding, caught.value.found.rounding_at_ends) == (found.random, found.ends)


def test_what_cannot_be_measured_is_said(monkeypatch):
    risk = risk_of(tiny_model("llama").bfloat16(), ragged_slice(), 3)
    monkeypatch.setattr("hesscli.curvature.trust.wide.available_bytes", lambda _device: 100)
    assert Float32Errors(HessianOperator(risk, keep_graph=False), risk, "hessian", 0).sampled() is None
    found, warning = check_rounding(PASSED, None, differences=True)
    assert found == PASSED
    assert "could not be measured" in warning.text
    found, warning = check_rounding(PASSED, Rounding(0.01, 0.02, 0.03), differences=True)
    assert (found.noise, found.noise_at_ends) == (0.01, 0.02)
    assert "off by up to 0.03 " in warning.text


def test_differences_are_no_remedy_where_they_are_refused():
    _, warning = check_rounding(PASSED, Rounding(0.01, 0.01, 0.01), differences=False)
    assert warning.text.endswith("use --dtype float32")


@pytest.mark.parametrize(("errors", "dtype"), [(Float32Errors, torch.bfloat16), (Float64Errors, torch.float32)])
def test_a_copy_in_a_wider_dtype_stays_within_what_the_user_gave(errors, dtype):
    risk = risk_of(tiny_model("llama").to(dtype), ragged_slice(), 3)
    operator, v = HessianOperator(risk, keep_graph=False), risk.space.random("gaussian", seed=1, index=0)
    weights = risk.space.dimension * dtype.itemsize
    for limit, measured in ((64 * weights, True), (4 * weights, False)):
        asked = errors(operator, risk, "hessian", 0, {torch.device("cpu"): limit})
        assert (asked.along([v]) is not None) == measured
