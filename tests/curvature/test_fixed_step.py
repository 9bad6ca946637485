"""One step of finite differences for every vector: the quotient that it names, and an error that is told."""

import numpy as np
import pytest
from tiny import flat
from trained import trained_risk

from hesscli.curvature.batches import on_risk
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.displaced import DisplacedGradient
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.errors import UsageError
from hesscli.linalg.krylov.lanczos import LanczosState

STEPS = [1e-4, 1e-3, 1e-2, 1e-1]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def demo():
    """The embedded checkpoint's risk on one row, and vectors of every kind with their exact products, by name."""
    risk = trained_risk(1, 64)
    exact = HessianOperator(risk, keep_graph=True)
    state = LanczosState.start(risk.space, risk.space.random("gaussian", seed=0, index=0), reorthogonalise=True)
    while state.num_matvecs < 20:
        state.expand(exact)
    top, lowest = state.basis.combine(state.ritz().vectors[:, [-1, 0]])
    vectors = {"random": risk.space.random("gaussian", seed=0, index=1), "top": top, "lowest": lowest}
    return risk, {name: (v, flat(exact.matvec(v))) for name, v in vectors.items()}


def fixed(risk, step):
    return FiniteDifferenceOperator(risk, scheme="central", fixed_step=step)


def test_it_is_the_central_quotient_at_that_step_of_the_unit_vector(demo):
    risk, vectors = demo
    gradient, v = DisplacedGradient(risk), vectors["random"][0]
    alpha = 1e-2 / risk.space.norm(v)
    ahead, behind = (flat(gradient.change(v, sign * alpha)) for sign in (1, -1))
    operator = choose_operator(risk, kind="hessian", product="finite-difference", seed=0, step=1e-2).operator
    found = operator.difference(v)
    assert found.step == 1e-2
    assert relative(flat(found.product), (ahead - behind) / (2 * alpha)) < 1e-6
    assert operator.steps == (1e-2, 1e-2)


@pytest.mark.parametrize("step", STEPS)
def test_its_error_is_told_within_a_factor_of_four(demo, step):
    risk, vectors = demo
    operator = fixed(risk, step)
    for name, (v, truth) in vectors.items():
        error, told = relative(flat(operator.matvec(v)), truth), operator.difference(v).error
        # Beyond its own length a product is wrong altogether: how far is no matter.
        assert min(error, 1.0) / 4 <= min(told, 1.0) <= 4 * min(error, 1.0), name


@pytest.mark.parametrize("step", STEPS)
def test_intervals_allow_for_the_worst_vector_before_it_is_met(demo, step):
    risk, vectors = demo
    operator = fixed(risk, step)
    operator.matvec(vectors["random"][0])
    allowed = operator.relative_error
    for v, _ in vectors.values():
        operator.matvec(v)
    assert operator.error_estimate <= 1.5 * allowed
    assert operator.warnings(noise=allowed) == []


def test_an_error_that_intervals_do_not_allow_for_is_warned_of_as_the_steps(demo):
    risk, vectors = demo
    operator = fixed(risk, 0.1)
    operator.matvec(vectors["lowest"][0])
    (warning,) = operator.warnings(noise=1e-3)
    assert warning.code == "difference-error"
    assert "fixed step 0.1" in warning.text
    assert "use operator.step auto" in warning.text


def test_a_step_that_roundings_swallow_is_refused(demo):
    risk, vectors = demo
    with pytest.raises(UsageError, match=r"operator.step: 1e-09 is lost in the roundings.*use auto, or .* or more"):
        fixed(risk, 1e-9).matvec(vectors["random"][0])


def test_a_batch_of_its_own_is_measured_at_the_same_step(demo):
    risk, _ = demo
    assert on_risk(fixed(risk, 1e-2), risk).fixed_step == 1e-2


def test_an_exact_product_has_no_step(demo):
    risk, _ = demo
    assert isinstance(
        choose_operator(risk, kind="hessian", product="auto", seed=0, step=1e-2).operator, HessianOperator
    )
