"""A model that is on another device as a whole: every product is the host's, and stays there.

Run in a process of its own by `test_second_device.py`.
"""

import numpy as np
import pretend
import pytest
import torch
from tiny import ragged_slice, risk_of, tiny_model

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries import find_symmetry
from hesscli.curvature.trust.preflight import check_product
from hesscli.curvature.trust.rounding import Float32Errors
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.mapped import is_mapped
from hesscli.linalg.storage import BasisStorage

pretend.register()
DEVICE = torch.device("pretend:1")
DATA = ragged_slice((6, 4, 7))


def risk_on_device(name, *, attention="eager", dtype=None):
    model = tiny_model(name, attention=attention).to(DEVICE, dtype)
    model.tie_weights()  # torch makes new parameters where devices are this different, and CUDA's are not
    named = dict(model.named_parameters())
    batches = list(DATA.batches(2))
    return EmpiricalRisk(model, batches, names=list(named), parameters=list(named.values()), input_device=DEVICE)


@pytest.fixture(scope="module")
def qwen3():
    """The risk of a tiny model on the host, and of the same model on the device."""
    return risk_of(tiny_model("qwen3"), DATA, 2), risk_on_device("qwen3")


def relative(found, truth):
    """The distance of two vectors over the length of the second, wherever they are."""
    parts = [(a.cpu().double(), b.cpu().double()) for a, b in zip(found, truth, strict=True)]
    return (sum(((a - b) ** 2).sum() for a, b in parts) / sum((b**2).sum() for _, b in parts)).item() ** 0.5


def drawn(risk, count=1):
    return [risk.space.random("gaussian", seed=0, index=i) for i in range(count)]


def test_loss_gradient_and_random_vectors_are_the_hosts(qwen3):
    host, device = qwen3
    assert device.space.names == host.space.names
    assert device.loss().value == pytest.approx(host.loss().value, rel=1e-7)
    assert device.loss().stderr == pytest.approx(host.loss().stderr, rel=1e-6)
    assert relative(device.gradient(), host.gradient()) < 1e-6
    for u, v in zip(drawn(device, 2), drawn(host, 2), strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(u, v, strict=True))
    (u,), (v,) = drawn(device), drawn(host)
    assert device.loss_along(u, 1e-2) == pytest.approx(host.loss_along(v, 1e-2), rel=1e-7)
    assert device.weights_norm() == pytest.approx(host.weights_norm(), rel=1e-9)


PRODUCTS = {
    "double backward": lambda risk: HessianOperator(risk, keep_graph=False),
    "graph kept": lambda risk: HessianOperator(risk, keep_graph=True),
    "layered": lambda risk: LayeredOperator(risk, find_stack(risk.first_row())),
    "layered, reverse mode": lambda risk: LayeredOperator(risk, find_stack(risk.first_row()), forward_mode=False),
    **{
        f"{kind}, {product}": lambda risk, kind=kind, product=product: (
            choose_operator(risk, kind=kind, product=product, seed=3).operator
        )
        for kind in ("ggn", "fisher", "empirical-fisher")
        for product in ("auto", "layered")
    },
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_are_the_hosts_and_lie_on_the_device(qwen3, product):
    host, device = qwen3
    products = PRODUCTS[product](device).matvecs(drawn(device, 2))
    truths = PRODUCTS[product](host).matvecs(drawn(host, 2))
    for found, truth in zip(products, truths, strict=True):
        assert {part.device for part in found} == {DEVICE}
        assert relative(found, truth) < 1e-6


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mixtral"])
def test_other_architectures_compute_where_their_weights_are(name):
    host, device = risk_of(tiny_model(name), DATA, 2), risk_on_device(name)
    for product in ("double backward", "layered"):
        found, truth = (PRODUCTS[product](risk).matvec(*drawn(risk)) for risk in (device, host))
        assert relative(found, truth) < 1e-6


@pytest.mark.parametrize("product", ["graph kept", "layered", "ggn, auto", "fisher, layered"])
def test_nothing_of_a_parameters_size_leaves_the_device_in_a_product(qwen3, product):
    _, device = qwen3
    operator, (v,) = PRODUCTS[product](device), drawn(device)
    operator.matvec(v)
    with pretend.recorded() as transfers:
        operator.matvec(v)
        device.space.norm(v)
    left = [t.nbytes for t in transfers if t.target.type == "cpu"]
    assert left  # sums, and what the weights are known by: a number for each
    assert max(left) <= 16 * len(device.parameters) < max(p.nbytes for p in device.parameters)
    assert sum(t.nbytes for t in transfers if t.source.type == "cpu") < 4 * sum(
        value.nbytes for batch in device.batches for value in (*batch.inputs.values(), batch.targets)
    )


def test_differences_are_within_the_error_that_they_report():
    host, device = risk_of(tiny_model("mixtral"), DATA, 2), risk_on_device("mixtral")
    (u,), (v,) = drawn(device), drawn(host)
    truth = HessianOperator(host, keep_graph=False).matvec(v)
    operator = FiniteDifferenceOperator(device, scheme="central")
    found = operator.difference(u)
    assert {part.device for part in found.product} == {DEVICE}
    assert relative(found.product, truth) < 3 * found.error
    on_host = FiniteDifferenceOperator(host, scheme="central")
    on_host.difference(v)
    assert operator.num_choices == on_host.num_choices  # as of a token's experts


def test_scaled_dot_product_attention_has_its_second_derivatives(qwen3):
    host, _ = qwen3
    device = risk_on_device("qwen3", attention="sdpa")
    truth = HessianOperator(host, keep_graph=False).matvec(*drawn(host))
    for product in ("double backward", "layered"):
        assert relative(PRODUCTS[product](device).matvec(*drawn(device)), truth) < 2e-6


def test_the_self_test_of_a_product_passes(qwen3):
    host, device = qwen3
    found = [
        check_product(
            HessianOperator(risk, keep_graph=False),
            risk,
            loss=risk.loss(),
            gradient=risk.gradient(),
            semi_definite=False,
            seed=0,
        )
        for risk in (host, device)
    ]
    assert found[1].repeat == 0.0
    assert (found[1].known_answer is None) == (found[0].known_answer is None)
    assert found[1].noise < max(1e-5, 3 * found[0].noise)


def test_the_known_answer_is_the_hosts(qwen3):
    host, device = qwen3
    directions = [find_symmetry(risk, risk.gradient(), seed=0).direction(risk) for risk in (device, host)]
    assert relative(*directions) < 1e-5


def test_narrow_weights_are_held_against_float32_on_the_device():
    device = risk_on_device("qwen3", dtype=torch.bfloat16)
    operator = LayeredOperator(device, find_stack(device.first_row()))
    assert {part.dtype for part in operator.matvec(*drawn(device))} == {torch.float32}
    assert 1e-4 < Float32Errors(operator, device, "hessian", 0).sampled().largest < 0.5


STORAGES = [("device", "float32"), ("device", "int8"), ("host", "bfloat16"), ("disk", "float32"), ("disk", "int8")]
STORAGES = [BasisStorage(place, dtype) for place, dtype in STORAGES]


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: f"{s.place}-{s.dtype}")
def test_lanczos_with_its_basis_anywhere_gives_the_hosts_ritz_values(qwen3, storage):
    found = []
    for risk in qwen3:
        risk.space.storage = storage
        start = risk.space.random("rademacher", seed=1, index=0)
        state = LanczosState.start(risk.space, start, reorthogonalise=True)
        operator = HessianOperator(risk, keep_graph=True)
        for _ in range(5):
            state.absorb(operator.matvec(state.store()))
        (combined,) = state.basis.combine(np.ones((len(state.basis), 1)))
        found.append((np.array(state.alphas), np.array(state.betas), combined))
        risk.space.storage = BasisStorage()
    (alphas, betas, combined), (d_alphas, d_betas, d_combined) = found
    loose = 1e-4 if storage.dtype == "float32" else 3e-2  # a rounded basis amplifies a last digit
    assert np.allclose(d_alphas, alphas, rtol=loose, atol=loose)
    assert np.allclose(d_betas, betas, rtol=loose, atol=loose)
    assert {part.device for part in d_combined} == {DEVICE}
    assert not any(is_mapped(part) for part in d_combined)
