"""A risk over 2 and 4 processes is that of one process: loss, gradient, vectors, every product."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from breadth.subjects import SUBJECTS
from models import model_of
from spawned_measurements import CASES, OTHERS, SEED
from tiny import flat, ragged_slice, risk_of, tiny_model

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, GGNOperator, OuterProductOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import SampledLabelCurvature
from hesscli.curvature.trust.rounding import Float32Errors

WORDS = [(size, i) for size, cases in CASES.items() for i in range(len(cases))]


@pytest.fixture(params=WORDS, ids=[f"{size}-{CASES[size][i]['name']}" for size, i in WORDS])
def case(request, over_ranks):
    """(what each rank found, the same risk in one process)."""
    size, i = request.param
    given = CASES[size][i]
    model, only = model_of(given["name"]), given.get("only", "")
    named = {n: p for n, p in model.named_parameters() if only in n}
    data = ragged_slice(given.get("lengths", (5, 11, 3, 9, 7)))
    risk = EmpiricalRisk(
        model,
        list(data.batches(given.get("batch_size", 2))),
        names=list(named),
        parameters=list(named.values()),
        input_device=torch.device("cpu"),
    )
    return [found["cases"][i] for found in over_ranks[size]], risk


def relative(parts, vector):
    """The distance of whole parts from a vector, over its length."""
    truth = flat(vector)
    return np.linalg.norm(np.concatenate([part.ravel() for part in parts]) - truth) / np.linalg.norm(truth)


def test_every_rank_finds_the_same_bits(case):
    found, _ = case
    for one, other in pairwise(found):
        assert one["loss"] == other["loss"]
        assert one["inner"] == other["inner"]
        assert one["difference"][1] == other["difference"][1]
        assert all(np.array_equal(a, b) for a, b in zip(one["single"], other["single"], strict=True))


def test_random_vectors_do_not_depend_on_the_number_of_ranks(case):
    found, risk = case
    gaussian = risk.space.random("gaussian", seed=1, index=0)
    signs = risk.space.random("rademacher", seed=2, index=3)
    assert relative(found[0]["gaussian"], gaussian) == 0
    assert relative(found[0]["signs"], signs) == 0


def test_inner_products_are_over_all_ranks(case):
    found, risk = case
    v, w = (risk.space.random("gaussian", seed=1, index=i) for i in range(2))
    inner, norm, with_basis = found[0]["inner"]
    assert inner == pytest.approx(risk.space.inner(v, w), rel=1e-6)
    assert norm == pytest.approx(risk.space.norm(v), rel=1e-7)
    assert with_basis == pytest.approx([norm**2, inner], rel=1e-6)


def test_loss_and_its_error_are_those_of_one_process(case):
    found, risk = case
    assert found[0]["loss"] == pytest.approx((risk.loss().value, risk.loss().stderr), rel=1e-6)


def test_the_gradient_is_a_sum_over_ranks_and_no_mean(case):
    found, risk = case
    assert relative(found[0]["gradient"], risk.gradient()) < 1e-5


def test_a_head_in_chunks_of_tokens_changes_neither_loss_nor_gradient(case):
    found, risk = case
    v = risk.space.random("gaussian", seed=1, index=0)
    for one in found:
        chunks = one["chunks"]
        assert chunks["most"] == 2
        assert chunks["loss"] == pytest.approx((risk.loss().value, risk.loss().stderr), rel=1e-6)
        assert chunks["along"] == pytest.approx(risk.loss_along(v, 0.01), rel=1e-6)
        assert relative(chunks["gradient"], risk.gradient()) < 1e-6


def test_a_gradient_over_ranks_never_holds_all_scores(over_ranks):
    for found in over_ranks[2]:
        whole, chunks, scores = found["peak"]
        assert whole > 2 * scores
        assert chunks < 0.5 * scores


def test_exact_products_are_those_of_one_process(case):
    found, risk = case
    vs = [risk.space.random("gaussian", seed=1, index=i) for i in range(2)]
    truth = {
        "hessian": HessianOperator(risk, keep_graph=False),
        "ggn": GGNOperator(risk),
        "fisher": OuterProductOperator(risk, SampledLabelCurvature(seed=SEED)),
        "empirical-fisher": EmpiricalFisherOperator(risk),
    }
    for kind, operator in truth.items():
        for product, v in zip(found[0]["products"][kind], vs, strict=True):
            assert relative(product, operator.matvec(v)) < 1e-5, kind
    assert relative(found[0]["single"], truth["hessian"].matvec(vs[1])) < 1e-5


def test_differences_are_within_their_reported_error_and_leave_the_weights_as_they_were(case):
    found, risk = case
    product, error = found[0]["difference"]
    truth = HessianOperator(risk, keep_graph=False).matvec(risk.space.random("gaussian", seed=1, index=0))
    assert relative(product, truth) <= 2 * error < 1e-2  # which the estimate is good to
    assert all(one["restored"] for one in found)


def test_choices_of_experts_that_a_step_changes_are_counted_over_ranks(case):
    found, risk = case
    operator = FiniteDifferenceOperator(risk, scheme="central")
    switched = operator.difference(risk.space.random("gaussian", seed=1, index=0)).switched
    for one in found:
        assert one["choices"] == (operator.num_choices, switched)


def test_a_mixture_of_experts_has_choices_to_count(over_ranks):
    # 35 positions of a token, two layers.
    assert [found["cases"][2]["choices"][0] for found in over_ranks[2]] == [70, 70]


def test_moved_shards_are_seen_where_older_ones_were_gathered_before(case):
    found, risk = case
    v = risk.space.random("gaussian", seed=1, index=0)
    assert found[0]["along"] == pytest.approx(risk.loss_along(v, 0.01), rel=1e-6)
    assert found[0]["along"] != pytest.approx(risk.loss().value, rel=1e-4)


def test_shards_are_uneven_and_a_rank_may_have_none(over_ranks):
    by_rank = [found["cases"][1]["local"] for found in over_ranks[2]]
    assert [shapes[0] for shapes in by_rank] == [(1,), (0,)]  # one number, the gain
    assert [shapes[-1] for shapes in by_rank] == [(10, 8), (9, 8)]
    assert [found["cases"][0]["local"][0] for found in over_ranks[4]] == [(5, 8), (5, 8), (5, 8), (4, 8)]


def test_a_rank_without_rows_joins_the_passes_of_the_others(over_ranks):
    rows = [found["cases"][0]["batches"] for found in over_ranks[4]]
    assert len({len(batches) for batches in rows}) == 1
    assert [sum(batches) for batches in rows] == [0, 1, 1, 1]


@pytest.mark.parametrize("name", OTHERS[2])
def test_other_tasks_and_structures_have_the_same_gradient_and_product(name, over_ranks):
    model, batch = SUBJECTS[name].build(), SUBJECTS[name].batch()
    named = dict(model.named_parameters())
    risk = EmpiricalRisk(
        model, [batch], names=list(named), parameters=list(named.values()), input_device=torch.device("cpu")
    )
    gradient, product = over_ranks[2][0]["others"][name]
    v = risk.space.random("gaussian", seed=1, index=0)
    assert relative(gradient, risk.gradient()) < 1e-5
    assert relative(product, HessianOperator(risk, keep_graph=False).matvec(v)) < 1e-5


def test_what_narrow_weights_do_is_measured_over_ranks_as_in_one_process(over_ranks):
    risk = risk_of(tiny_model("qwen3").bfloat16(), ragged_slice(), 2)
    for kind, error in over_ranks[2][0]["narrow"].items():
        operator = choose_operator(risk, kind=kind, product="layered", seed=SEED).operator
        assert error == pytest.approx(Float32Errors(operator, risk, kind, SEED).sampled().largest, rel=0.3), kind
    assert over_ranks[2][0]["narrow"] == over_ranks[2][1]["narrow"]


def test_a_function_that_is_differentiable_once_is_found_over_ranks(over_ranks):
    for found in over_ranks[2]:
        assert found["once"].startswith("the last resort")
        assert "once_differentiable" in found["once"]
