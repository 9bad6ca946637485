"""The known answer's figure sees the product's error: for exact products, narrow weights and differences."""

import numpy as np
import pytest
import torch
from tiny import CONFIGS, flat, ragged_slice, risk_of, tiny_model
from trained import trained_risk
from wide import float64_product

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.curvature.symmetries import find_symmetry
from hesscli.curvature.trust.float64 import Float64Errors
from hesscli.curvature.trust.preflight import Preflight, check_product
from hesscli.curvature.trust.wide import float64_throughout, widened


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def errors(operator, risk, truth, *, seeds):
    """(the self-test's figures, the true ones along the same directions, the true one along random vectors)."""
    gradient = risk.gradient()
    figures, along = [], []
    for seed in range(seeds):
        symmetry = find_symmetry(risk, gradient, seed=seed)
        d = symmetry.direction(risk)
        product = flat(operator.matvec(d))
        figures.append(relative(product, flat(symmetry.answer(risk, gradient))))
        along.append(relative(product, truth(d)))
    vectors = [risk.space.random("gaussian", seed=5, index=i) for i in range(3)]
    random = [relative(flat(operator.matvec(v)), truth(v)) for v in vectors]
    return np.array(figures), np.array(along), float(np.sqrt(np.mean(np.square(random))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_exact_product(name, dtype):
    risk = risk_of(tiny_model(name).to(dtype), ragged_slice(), 5)
    operator = HessianOperator(risk, keep_graph=True)
    figures, along, random = errors(operator, risk, float64_product(name, dtype=dtype), seeds=5)
    assert random > (1e-8 if dtype == torch.float32 else 1e-3)
    # Where nothing else is measured, the noise floor takes float32's figure twice.
    floor = figures * (2.0 if dtype == torch.float32 else 1.0)
    assert random / 3 < np.median(floor) < 3 * random
    assert random / 6 < min(floor)
    assert max(floor) < 6 * random
    assert np.median(along) / 2 < np.median(figures) < 2 * np.median(along)


class Difference:
    """Central differences of the gradient at one step for every direction."""

    def __init__(self, risk, step):
        self.risk, self.space, self._step = risk, risk.space, step

    def matvec(self, v):
        alpha = self._step / self.space.norm(v)
        kept = [p.detach().clone() for p in self.risk.parameters]
        sides = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for p, w, x in zip(self.risk.parameters, kept, v, strict=True):
                    p.copy_(w + sign * alpha * x)
            sides.append(self.risk.gradient())
        with torch.no_grad():
            for p, w in zip(self.risk.parameters, kept, strict=True):
                p.copy_(w)
        return [(a - b) / (2 * alpha) for a, b in zip(*sides, strict=True)]


@pytest.mark.parametrize("name", CONFIGS)
def test_differences_at_a_short_step(name):
    # Their error is rounding of the gradient over the step: the same length whatever the direction. Beside it, the
    # known product is shorter than a random one, so the figure is larger than a random vector's by that much.
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    truth = float64_product(name)
    figures, along, random = errors(Difference(risk, 1e-3), risk, truth, seeds=2)
    assert figures == pytest.approx(along, rel=0.05)
    gradient = risk.gradient()
    symmetry = find_symmetry(risk, gradient, seed=0)
    known = risk.space.norm(symmetry.answer(risk, gradient)) / risk.space.norm(symmetry.direction(risk))
    v = risk.space.random("gaussian", seed=5, index=0)
    shorter = known / (np.linalg.norm(truth(v)) / risk.space.norm(v))
    assert random / 3 < figures[0] * shorter < 3 * random


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_differences_at_a_long_step_are_seen_by_linearity_alone(name):
    # What a step skips is third derivatives along stiff directions; a symmetry is flat.
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    operator = Difference(risk, 0.1)
    figures, along, random = errors(operator, risk, float64_product(name), seeds=1)
    assert figures == pytest.approx(along, rel=0.05)
    assert random > 3 * figures[0]
    found = check_product(operator, risk, loss=risk.loss(), gradient=risk.gradient(), semi_definite=False, seed=0)
    assert random / 5 < found.linearity < 5 * random


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_preflight_reports_it(name):
    risk = risk_of(tiny_model(name), ragged_slice(), 5)
    truth, gradient = float64_product(name), risk.gradient()
    for operator in (HessianOperator(risk, keep_graph=True), LayeredOperator(risk, find_stack(risk.first_row()))):
        found = check_product(operator, risk, loss=risk.loss(), gradient=gradient, semi_definite=False, seed=0)
        _, _, random = errors(operator, risk, truth, seeds=0)
        assert random / 4 < found.known_answer < 4 * random


@pytest.mark.parametrize("layered", [False, True])
def test_on_a_trained_model_float64_shows_what_the_symmetries_do_not(layered):
    risk = trained_risk(2, 32)
    product = LayeredOperator(risk, find_stack(risk.first_row())) if layered else HessianOperator(risk, keep_graph=True)
    gradient = risk.gradient()
    found = check_product(product, risk, loss=risk.loss(), gradient=gradient, semi_definite=False, seed=0)
    better = Float64Errors(product, risk, "hessian", 0).preflight(found)
    wide = HessianOperator(widened(risk, risk.batches, torch.float64), keep_graph=False)

    def truth(v):
        with float64_throughout():
            return flat(wide.matvec([part.double() for part in v]))

    _, along, random = errors(product, risk, truth, seeds=1)
    assert found.known_answer < along[0] / 2
    assert along[0] / 2 < better.known_answer < 2 * along[0]
    assert random / 3 < better.noise < 3 * random


@pytest.mark.parametrize("left_out", ["a model in float64", "memory"])
def test_what_float64_cannot_be_asked_of_is_left_as_it_was(left_out, monkeypatch):
    risk = risk_of(tiny_model("gpt2"), ragged_slice(), 5)
    if left_out == "memory":
        monkeypatch.setattr("hesscli.curvature.trust.wide.available_bytes", lambda _device: 100)
    else:
        risk = risk_of(tiny_model("gpt2").double(), ragged_slice(), 5)
    found = Preflight(1e-8, 0.0, 1e-8, 1e-7, None, None)
    asked = Float64Errors(HessianOperator(risk, keep_graph=False), risk, "hessian", 0)
    assert asked.preflight(found) == found
    assert asked.along([risk.gradient()]) is None
    assert found.noise == 2e-7  # other vectors are guessed


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical-fisher"])
def test_float64_is_asked_of_every_matrix(kind):
    risk = risk_of(tiny_model("llama"), ragged_slice(), 2)
    operator = choose_operator(risk, kind=kind, product="auto", seed=0).operator
    found = Float64Errors(operator, risk, kind, 0).preflight(Preflight(0.0, 0.0, 0.0, None, None, None))
    assert 3e-8 < found.rounding < 3e-6
    assert {p.dtype for p in risk.model.parameters()} == {torch.float32}


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

    found = check_product(
        Noisy(), risk, loss=risk.loss(), gradient=risk.gradient(), semi_definite=False, seed=0
    ).known_answer
    assert found == pytest.approx(0.01, rel=0.5)
