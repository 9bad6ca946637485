"""Known answers: the identity holds on dense truth, its error is the product's error, and it is never guessed."""

import numpy as np
import pytest
import torch
from tiny import dense_hessian, flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator
from hesscli.curvature.layered import LayeredOperator
from hesscli.curvature.preflight import check_product
from hesscli.curvature.stack import find_stack
from hesscli.curvature.symmetries import find_symmetry
from hesscli.data import IGNORED, Sequence, Slice

SYMMETRIC = ["llama", "qwen3", "gemma3", "olmo2", "mixtral"]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_the_dense_hessian_gives_the_known_answer(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    symmetry = find_symmetry(risk, seed=0)
    answer = flat(symmetry.answer(risk, risk.gradient()))
    assert relative(dense_hessian(name) @ flat(symmetry.direction(risk)), answer) < 1e-5
    moved = {name.split(".")[-2] for name in symmetry.factors}
    assert moved >= ({"v_proj", "o_proj"} if name == "mixtral" else {"v_proj", "o_proj", "up_proj", "down_proj"})


@pytest.mark.parametrize("name", SYMMETRIC)
def test_its_error_is_the_true_error_of_the_product_within_a_factor_of_three(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    for operator in (
        HessianOperator(risk, keep_graph=True),
        LayeredOperator(risk, find_stack(risk.first_row())),
    ):
        found = check_product(operator, risk, semi_definite=False, seed=0).known_answer
        v = risk.space.random("gaussian", seed=5, index=0)
        true = relative(flat(operator.matvec(v)), dense_hessian(name) @ flat(v))
        assert true / 3 < found < 3 * true


def test_noise_of_a_known_size_is_read_as_that_size():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 5)
    exact = HessianOperator(risk, keep_graph=True)

    class Noisy:
        space = exact.space

        def matvec(self, v):
            generator = torch.Generator().manual_seed(int(1e6 * abs(float(v[0].flatten()[0]))))
            product = exact.matvec(v)
            size = 0.01 * self.space.norm(product) / self.space.dimension**0.5
            return [p + size * torch.randn(p.shape, generator=generator) for p in product]

    assert check_product(Noisy(), risk, semi_definite=False, seed=0).known_answer == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("kind", [GGNOperator, EmpiricalFisherOperator])
def test_semi_definite_matrices_are_zero_along_it(kind):
    risk = risk_of(tiny_model("qwen3"), ragged_slice(), 5)
    operator = kind(risk)
    assert check_product(operator, risk, semi_definite=True, seed=0).known_answer < 1e-5
    # The Hessian is not: the two must not be mixed up.
    hessian = HessianOperator(risk, keep_graph=True)
    direction = find_symmetry(risk, seed=0).direction(risk)
    assert risk.space.norm(hessian.matvec(direction)) > 1e3 * risk.space.norm(operator.matvec(direction))


def test_a_direction_along_which_the_loss_changes_is_not_used():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda _m, _i, out: torch.tanh(out))
    moved = {name.split(".")[-2] for name in find_symmetry(risk_of(model, ragged_slice(), 5), seed=0).factors}
    assert moved == {"v_proj", "o_proj"}


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_without_a_known_structure_there_is_no_answer(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    assert find_symmetry(risk, seed=0) is None
    assert check_product(HessianOperator(risk, keep_graph=True), risk, semi_definite=False, seed=0).known_answer is None


def test_both_weights_of_a_pair_must_be_selected():
    model = tiny_model("llama")
    assert find_symmetry(risk_of(model, ragged_slice(), 5, only=lambda n: "up_proj" in n), seed=0) is None
    found = find_symmetry(risk_of(model, ragged_slice(), 5, only=lambda n: "layers.1.mlp" in n), seed=0)
    assert {name.split(".")[2] for name in found.factors} == {"1"}


def test_a_first_row_without_a_term_confirms_nothing():
    # Its loss is zero along every direction, symmetry or not.
    data = ragged_slice()
    first = Sequence(data.sequences[0].inputs, torch.full_like(data.sequences[0].targets, IGNORED))
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda _m, _i, out: torch.tanh(out))
    risk = risk_of(model, Slice((first, *data.sequences[1:]), id="masked first"), 5)
    assert {name.split(".")[-2] for name in find_symmetry(risk, seed=0).factors} == {"v_proj", "o_proj"}
