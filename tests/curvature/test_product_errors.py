"""The error of a product along a vector is told within a factor of three, of random vectors and of eigenvectors."""

import numpy as np
import pytest
import torch
from tiny import flat, ragged_slice, risk_of, tiny_model
from trained import trained_risk

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator, OuterProductOperator
from hesscli.curvature.score_curvature import SampledLabelCurvature
from hesscli.curvature.trust.derivatives import drawn_labels
from hesscli.curvature.trust.float64 import Float64Errors
from hesscli.curvature.trust.product_errors import errors_along, sampled_errors
from hesscli.curvature.trust.rounding import EXACT, Float32Errors
from hesscli.curvature.trust.wide import float64_throughout, widened
from hesscli.linalg.krylov.lanczos import LanczosState


def ends_and_random(operator, *, steps):
    """Ritz vectors at both ends, and two random ones."""
    space = operator.space
    state = LanczosState.start(space, space.random("gaussian", seed=0, index=0), reorthogonalise=True)
    while state.num_matvecs < steps:
        state.expand(operator)
    vectors = state.basis.combine(state.ritz().vectors[:, [-1, -2, -3, 0]])
    return [*vectors, *(space.random("rademacher", seed=0, index=i) for i in (1, 2))]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("hessian", "float32"), ("hessian", "bfloat16"), ("ggn", "float32"), ("empirical-fisher", "float32")],
)
def test_on_a_trained_model_it_is_told_along_each_vector(kind, dtype):
    # One figure for all would not do: errors along these vectors are up to ten times apart.
    risk = trained_risk(2, 64, dtype=getattr(torch, dtype))  # rows are looked at on half their length
    operator = HessianOperator(risk, keep_graph=True) if kind == "hessian" else EXACT[kind](risk)
    vectors = ends_and_random(operator, steps=12)
    told = (Float64Errors if dtype == "float32" else Float32Errors)(operator, risk, kind, 0).along(vectors)
    wide = EXACT[kind](widened(risk, risk.batches, torch.float64))
    for v, error in zip(vectors, told, strict=True):
        unit = [part / risk.space.norm(v) for part in v]
        with float64_throughout():
            truth = flat(wide.matvec([part.double() for part in unit]))
        true = np.linalg.norm(flat(operator.matvec(unit)) - truth) / np.linalg.norm(truth)
        assert true / 3 < error < 3 * true


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_it_is_told_of_weights_in_float64_whose_model_computes_in_float32_inside(kind):
    risk = risk_of(tiny_model("qwen3").double(), ragged_slice(), 5)
    operator = HessianOperator(risk, keep_graph=True) if kind == "hessian" else EXACT[kind](risk)
    vectors = [risk.space.random("gaussian", seed=0, index=i) for i in range(2)]
    vectors += operator.matvecs(operator.matvecs(vectors))
    for v in vectors:
        risk.space.scale(1 / risk.space.norm(v), v)
    wide = EXACT[kind](widened(risk, risk.batches, torch.float64))
    with float64_throughout():
        truths = wide.matvecs(vectors)
    for v, truth, error in zip(vectors, truths, Float64Errors(operator, risk, kind, 0).along(vectors), strict=True):
        true = np.linalg.norm(flat(operator.matvec(v)) - flat(truth)) / np.linalg.norm(flat(truth))
        assert true / 3 < error < 3 * true
        assert true > 1e-9  # far above float64's own rounding


def test_labels_that_are_drawn_make_the_empirical_fisher_matrix_the_fisher_matrix():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 2)
    v = risk.space.random("gaussian", seed=0, index=0)
    same = EmpiricalFisherOperator(risk.on(drawn_labels(risk, seed=4))).matvec(v)
    assert (flat(same) == flat(OuterProductOperator(risk, SampledLabelCurvature(seed=4)).matvec(v))).all()
    other = flat(OuterProductOperator(risk, SampledLabelCurvature(seed=5)).matvec(v))
    assert np.linalg.norm(flat(same) - other) > 0.1 * np.linalg.norm(other)


def test_the_length_of_a_vector_does_not_matter_and_zeros_have_no_error():
    risk = risk_of(tiny_model("llama"), ragged_slice(), 2)
    measured, reference = HessianOperator(risk, keep_graph=False), GGNOperator(risk)
    v = risk.space.random("gaussian", seed=0, index=0)
    zeros = risk.space.zeros()
    one, same, none = errors_along(measured, reference, [v, [4096 * part for part in v], zeros])
    assert one == same > 0.1
    assert none == 0.0


class Wrong:
    """A product that errs by a tenth, and by a half of what lies along one vector."""

    def __init__(self, operator, u):
        self.space, self._operator, self._u = operator.space, operator, u

    def matvec(self, v):
        product = self._operator.matvec(v)
        along = self.space.inner(self._u, product)
        out = [1.1 * part for part in product]
        self.space.axpy(0.4 * along, self._u, out)
        return out


def test_what_errs_towards_the_ends_is_told_apart_from_what_errs_along_random_vectors():
    # Seen on a trained model in bfloat16: 0.06 along a random vector, 0.22 along the top eigenvector.
    operator = HessianOperator(risk_of(tiny_model("llama"), ragged_slice(), 5), keep_graph=True)
    u = operator.space.random("gaussian", seed=9, index=0)
    for _ in range(40):
        operator.space.scale(1 / operator.space.norm(u), u)
        u = operator.matvec(u)
    operator.space.scale(1 / operator.space.norm(u), u)
    found = sampled_errors(Wrong(operator, u), operator, num_random=3, num_powers=4, seed=0)
    assert 0.08 < found.random < 0.2 < found.ends < found.largest < 0.5
