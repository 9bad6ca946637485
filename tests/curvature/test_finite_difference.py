"""Differences of gradients: as near to the Hessian as they say, and the weights are never touched."""

from functools import cache

import numpy as np
import pytest
import torch
from tiny import dense_hessian, flat, ragged_slice, risk_of, tiny_model, unflat
from torch.utils._python_dispatch import TorchDispatchMode

from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.errors import UsageError

GOAL = {"central": 1e-3, "forward": 1e-2}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def random(space, index=0):
    return space.random("gaussian", seed=0, index=index)


def operator_of(name="llama", scheme="central", model=None):
    risk = risk_of(model or tiny_model(name), ragged_slice(), 3)
    return FiniteDifferenceOperator(risk, scheme=scheme)


@cache
def extreme_vectors(name):
    """A few random vectors and the eigenvectors at both ends of the dense Hessian, float64."""
    dense = dense_hessian(name)
    _, vectors = np.linalg.eigh((dense + dense.T) / 2)
    rng = np.random.default_rng(0)
    return [*rng.standard_normal((2, len(dense))), *vectors.T[[-1, -2, 0]]]


@pytest.mark.parametrize("scheme", GOAL)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_product_is_the_dense_hessian_times_the_vector_within_what_it_says(name, scheme):
    operator, dense = operator_of(name, scheme), dense_hessian(name)
    for v in extreme_vectors(name):
        found = operator.difference(unflat(v, operator.space))
        error = relative(flat(found.product), dense @ v)
        assert error <= GOAL[scheme]
        assert error <= 3 * found.error
        assert found.error <= 3 * error + 1e-5  # the dense Hessian is in float32 too


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2", "mixtral"])
def test_a_product_is_as_good_on_other_architectures(name):
    operator = operator_of(name)
    v = random(operator.space)
    truth = HessianOperator(operator.risk, keep_graph=False).matvec(v)
    found = operator.difference(v)
    error = relative(flat(found.product), flat(truth))
    assert error <= 1e-3
    assert error / 3 <= found.error <= 3 * error


def test_in_float64_the_error_falls_to_what_float64_allows():
    operator = operator_of(model=tiny_model("gpt2").double())
    exact = HessianOperator(operator.risk, keep_graph=False)
    v = random(operator.space)
    found = operator.difference(v)
    error = relative(flat(found.product), flat(exact.matvec(v)))
    assert error <= 1e-8
    assert error / 3 <= found.error <= 3 * error


def test_selected_parameters_give_the_diagonal_block():
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 2, only=lambda n: ".mlp." in n)
    v = random(risk.space)
    truth = HessianOperator(risk, keep_graph=False).matvec(v)
    assert relative(flat(FiniteDifferenceOperator(risk, scheme="central").matvec(v)), flat(truth)) <= 1e-3


@pytest.mark.parametrize("scheme", GOAL)
def test_a_longer_vector_gives_a_longer_product(scheme):
    operator = operator_of("llama", scheme)
    v = random(operator.space)
    product = flat(operator.matvec(v))
    assert np.array_equal(flat(operator.matvec([1024 * part for part in v])), 1024 * product)
    assert np.array_equal(flat(operator.matvec([2.0**-20 * part for part in v])), 2.0**-20 * product)
    assert relative(flat(operator.matvec([-3 * part for part in v])), -3 * product) < GOAL[scheme]


def test_zeros_give_zeros_and_no_gradient_is_taken(monkeypatch):
    operator = operator_of()
    monkeypatch.setattr(EmpiricalRisk, "terms", lambda *_: pytest.fail("a gradient was taken"))
    assert not any(part.any() for part in operator.matvec(operator.space.zeros()))


@pytest.mark.parametrize("scheme", GOAL)
def test_along_a_weight_that_the_loss_does_not_reach_the_product_is_zero(scheme):
    model = tiny_model("gpt2")
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    operator = operator_of(scheme=scheme, model=model)
    operator.matvec(random(operator.space))
    before = operator.error_estimate
    v = operator.space.restrict(random(operator.space), {operator.space.names.index("unused")})
    assert not flat(operator.matvec(v)).any()
    assert operator.error_estimate == before
    assert operator.warnings(noise=operator.relative_error) == []


@pytest.mark.parametrize("scheme", GOAL)
def test_a_loss_that_does_not_change_at_all_gives_zeros(scheme):
    model = tiny_model("gpt2")
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    forward = model.transformer.ln_f.forward
    model.transformer.ln_f.forward = lambda h: forward(h) + 0.0 * model.idle.sum()
    operator = FiniteDifferenceOperator(risk_of(model, ragged_slice(), 3, lambda n: n == "idle"), scheme=scheme)
    assert not flat(operator.matvec(random(operator.space))).any()
    assert operator.error_estimate == 0.0


@pytest.mark.parametrize("failure", [KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("calls", [1, 4, 30])
def test_weights_are_the_same_bit_for_bit_after_a_failure(monkeypatch, failure, calls):
    operator = operator_of()
    model, terms, left = operator.risk.model, EmpiricalRisk.terms, [calls]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    versions = [p._version for p in model.parameters()]
    fused = torch.backends.cuda.cudnn_sdp_enabled()

    def failing(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise failure
        return terms(*arguments)

    monkeypatch.setattr(EmpiricalRisk, "terms", failing)
    with pytest.raises(failure):
        operator.matvecs([random(operator.space, i) for i in range(20)])
    assert left[0] == -1
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [p._version for p in model.parameters()] == versions
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.backends.cuda.cudnn_sdp_enabled() == fused
    monkeypatch.undo()
    v = random(operator.space)
    assert relative(flat(operator.matvec(v)), dense_hessian("llama") @ flat(v)) < 1e-3


def test_bfloat16_weights_are_moved_in_a_float32_copy():
    model = tiny_model("llama").bfloat16()
    for only in (None, lambda n: "layers.1" in n):
        risk = risk_of(model, ragged_slice(), 3, only)
        truth = HessianOperator(
            risk_of(tiny_model("llama").bfloat16().float(), ragged_slice(), 3, only), keep_graph=False
        )
        v = random(risk.space)
        found = FiniteDifferenceOperator(risk, scheme="central").difference(v)
        error = relative(flat(found.product), flat(truth.matvec(v)))
        assert error <= 1e-3
        assert error <= 3 * found.error
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("unseen", [False, True])
def test_a_weight_that_was_changed_is_seen(unseen):
    operator = operator_of("gpt2")
    v = random(operator.space)
    operator.matvec(v)
    with torch.no_grad():
        for p in operator.risk.parameters:
            (p.data if unseen else p).mul_(1.1)
    truth = HessianOperator(operator.risk, keep_graph=False).matvec(v)
    assert relative(flat(operator.matvec(v)), flat(truth)) < 1e-3


def test_a_weight_without_data_is_refused_by_name():
    model = tiny_model("llama")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to("meta"))
    with pytest.raises(UsageError, match=r"'lm_head\.weight' is not in memory"):
        operator_of(model=model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    operator = operator_of()
    v = random(operator.space)
    v[0].view(-1)[0] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        operator.matvec(v)
    with torch.no_grad():
        operator.risk.parameters[-1].view(-1)[0] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        operator.matvec(random(operator.space))


class Called(TorchDispatchMode):
    """The names of operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


def test_fused_attention_is_used_and_right():
    operator = operator_of(model=tiny_model("llama", attention="sdpa"))
    v = random(operator.space)
    with Called() as called:
        product = operator.matvec(v)
    assert any("_flash_attention" in name and name.endswith("_backward") for name in called.names)
    assert relative(flat(product), dense_hessian("llama") @ flat(v)) < 1e-3


def test_an_error_beyond_what_intervals_allow_for_is_said():
    operator = operator_of()
    operator.matvec(random(operator.space))
    assert operator.warnings(noise=operator.relative_error) == []
    (warning,) = operator.warnings(noise=operator.error_estimate / 10)
    assert warning.code == "difference-error"
    assert "exact product" in warning.text
