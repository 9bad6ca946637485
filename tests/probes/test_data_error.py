"""The data's error of each figure against the figure measured again without each group of rows."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import ragged_slice, risk_of, tiny_model

from hesscli.curvature.batches import groups_of_rows
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.selection import partition
from hesscli.events import Warned, ignore
from hesscli.linalg.statistics import jackknife_error, pseudo_values
from hesscli.probes.density import density
from hesscli.probes.solve import solve
from hesscli.report import schema
from hesscli.run.figures.data_error import (
    PROBES,
    SEED_OFFSET,
    add_to_ends,
    add_to_moments,
    groups_of,
    say_not_measured,
    spread_over_groups,
    squares_without_one,
)
from hesscli.run.figures.data_error_blocks import add_to_blocks, add_to_forms, block_squares_without_one
from hesscli.run.observed import ObservedOperator

LENGTHS = (5, 11, 3, 9, 7)  # rows that count for different numbers of terms


@cache
def subject():
    """A tiny model on five rows, each a group, and its operator."""
    risk = risk_of(tiny_model("llama"), ragged_slice(LENGTHS), 5)
    groups = groups_of(SimpleNamespace(risk=risk, batches=()), asked="auto", on_event=ignore)
    assert len(groups.terms) == 5
    return risk, groups, observed(risk)


def observed(risk):
    return ObservedOperator(HessianOperator(risk, keep_graph=True), risk.space, log=None)


@cache
def left_out():
    """The risk without each of the groups, by hand."""
    risk = subject()[0]
    rows = groups_of_rows(risk.batches, at_least=16)
    return [risk.on([b for b in rows if b is not gone]) for gone in rows]


def metric(value):
    return schema.Metric(value=value)


def measured(operator, **settings):
    """A density of a Hessian whose products are exact."""
    return density(operator, semi_definite=False, noise=0.0, seed=0, on_event=ignore, **settings)


@pytest.mark.parametrize("all_fit", [True, False])
def test_moments_without_a_group_are_those_of_the_other_rows(all_fit, monkeypatch):
    monkeypatch.setattr("hesscli.run.figures.data_error.vectors_fit", lambda _, count: all_fit or count < 3)
    risk, groups, operator = subject()
    metrics = {name: metric(v) for name, v in (("trace", 3.0), ("mean_eigenvalue", 0.1), ("frobenius_norm", 7.0))}
    samples, before = {}, operator.num_matvecs
    add_to_moments(metrics, samples, groups, operator, seed=0, on_event=ignore)
    assert operator.num_matvecs - before == 2 * PROBES
    space = risk.space
    z = [space.random("rademacher", seed=0, index=SEED_OFFSET + i) for i in range(PROBES)]
    traces, norms = [], []
    for one in [*left_out(), risk]:
        products = HessianOperator(one, keep_graph=False).matvecs(z)
        traces.append(np.mean([space.inner(u, w) for u, w in zip(z, products, strict=True)]))
        norms.append(np.sqrt(sum(space.inner(w, w) for w in products)))
    assert samples["trace"].data == pytest.approx(traces[:-1], rel=1e-4)
    assert samples["mean_eigenvalue"].data == pytest.approx(np.array(traces[:-1]) / space.dimension, rel=1e-4)
    assert samples["frobenius_norm"].data == pytest.approx(7.0 * np.array(norms[:-1]) / norms[-1], rel=1e-4)
    for name in ("trace", "frobenius_norm"):
        assert metrics[name].errors.data == pytest.approx(2 * np.std(samples[name].data), rel=1e-6)
        assert metrics[name].n["batches"] == 5


def test_the_ends_of_a_density_without_a_group_are_rayleigh_quotients_on_the_other_rows():
    _, groups, operator = subject()
    result = measured(operator, probes=1, steps=30, deflate=True, window=None, quadratic_forms=groups.forms(operator))
    high, low = result.quadratures[0].values[[-1, 0]]
    metrics = {"lambda_max": metric(high), "lambda_min": metric(low), "spectral_radius": metric(high)}
    samples = {}
    add_to_ends(metrics, samples, groups, result.end_forms)
    for name, sign in (("lambda_max", 1), ("lambda_min", -1)):
        assert groups.share @ result.end_forms[sign] == pytest.approx(metrics[name].value, rel=1e-4)
        assert metrics[name].errors.data > 0
    larger = "lambda_max" if high > -low else "lambda_min"
    assert samples["spectral_radius"].data == np.abs(samples[larger].data).tolist()
    # An eigenvector's quotient on other rows is what their own eigenvalue exceeds.
    for without, one in zip(samples["lambda_max"].data, left_out(), strict=True):
        again = measured(HessianOperator(one, keep_graph=True), probes=1, steps=30, deflate=True, window=None)
        assert without <= again.quadratures[0].values[-1] * (1 + 1e-5)


@pytest.mark.parametrize("window", [None, 0])
def test_an_end_that_nobody_holds_a_vector_of_has_no_forms(window):
    _, groups, operator = subject()
    result = measured(operator, probes=2, steps=3, deflate=False, window=window, quadratic_forms=groups.forms(operator))
    assert sorted(result.end_forms) == ([-1, 1] if window is None else [])
    for sign, one in result.end_forms.items():
        ends = [q.values[-1 if sign > 0 else 0] for q in result.quadratures]
        assert groups.share @ one == pytest.approx(sign * max(sign * np.array(ends)), rel=1e-4)


def test_block_figures_without_a_group_are_those_of_the_other_rows():
    risk, groups, operator = subject()
    blocks = partition(risk.space.names, by="layer")
    parts = [b.parts for b in blocks]
    before = operator.num_matvecs
    squares = block_squares_without_one(groups, operator, parts, seed=0, on_event=ignore)
    assert operator.num_matvecs - before == 2 * len(parts)
    v = risk.space.random("rademacher", seed=0, index=SEED_OFFSET)
    for one, found in zip([risk, *left_out()], squares, strict=True):
        products = HessianOperator(one, keep_graph=False).matvecs([risk.space.restrict(v, p) for p in parts])
        dense = np.array([[risk.space.inners(w, w)[sorted(p)].sum() for w in products] for p in parts])
        assert found == pytest.approx(dense, rel=1e-3)
    metrics = {name: metric(0.5) for name in ("relative_error", "cosine", "off_block_fraction")}
    of_block = [schema.Block(name=b.name, num_parameters=1, metrics={"cosine": metric(0.5)}) for b in blocks]
    samples = {}
    add_to_blocks(metrics, samples, of_block, squares)
    outside = 1 - np.trace(squares, axis1=1, axis2=2) / squares.sum(axis=(1, 2))
    assert samples["off_block_fraction"].data == pytest.approx(0.5 + outside[1:] - outside[0])
    assert metrics["off_block_fraction"].errors.data == pytest.approx(jackknife_error(outside[1:]))
    assert metrics["cosine"].errors.data > 0
    assert of_block[0].metrics["cosine"].errors.data > 0
    assert f"blocks.{blocks[0].name}.cosine" in samples


@pytest.mark.parametrize("rhs", ["gradient", "random"])
def test_the_form_of_a_solve_without_a_group_moves_as_the_solve_itself(rhs):
    risk, groups, operator = subject()
    space, damping = risk.space, 300.0  # a change of the matrix is small beside it: first order is all

    def solved(on):
        b = on.gradient() if rhs == "gradient" else space.random("gaussian", seed=0, index=0)
        return solve(
            HessianOperator(on, keep_graph=True),
            b,
            dampings=[damping],
            solver="minres",
            preconditioner=None,
            floor=None,
            tolerance=1e-5,
            max_steps=50,
            on_event=ignore,
        )[0]

    whole = solved(risk)
    system = SimpleNamespace(metrics={"quadratic_form": metric(whole.form)})
    samples = {}
    add_to_forms([system], samples, [whole], groups, operator, gradient=rhs == "gradient")
    truth = np.array([solved(one).form for one in left_out()]) - whole.form
    found = np.array(samples["quadratic_form"].data) - whole.form
    if rhs == "gradient":  # the square of the gradient's own change is second order, and not small with five rows
        for i, one in enumerate(left_out()):
            change = one.gradient()
            space.axpy(-1.0, risk.gradient(), change)
            found[i] += space.inner(change, change) / damping
    assert found == pytest.approx(truth, rel=0.1, abs=0.05 * np.abs(truth).max())


def test_the_norm_without_a_group_is_that_of_the_other_matrices():
    rng = np.random.default_rng(0)
    terms, z = np.array([3.0, 1, 4, 2]), rng.standard_normal(6)
    each = [m + m.T for m in rng.standard_normal((4, 6, 6))]
    whole = sum(t * m for t, m in zip(terms, each, strict=True)) / terms.sum()
    images = np.array([m @ z for m in each])
    found = squares_without_one(
        terms / terms.sum(), whole @ z @ (whole @ z), images @ (whole @ z), (images**2).sum(axis=1)
    )
    for g in range(4):
        rest = sum(t * m for i, (t, m) in enumerate(zip(terms, each, strict=True)) if i != g) / (10 - terms[g])
        assert found[g] == pytest.approx(np.sum((rest @ z) ** 2))


def test_the_jackknife_error_of_a_norm_is_its_spread_over_slices():
    # Slices of sixteen groups from one population: the error told by one slice against the spread of all.
    rng = np.random.default_rng(0)
    base = np.concatenate([[30.0, 12, 5], np.full(57, 0.5)])
    told, norms = [], []
    for _ in range(300):
        each = base * rng.gamma(2.0, 0.5, (16, 60))
        z = rng.integers(0, 2, (4, 60)) * 2.0 - 1.0
        mean = each.mean(axis=0)
        images = each[:, None] * z
        crosses, squares = (images * (mean * z)).sum(axis=2), (images**2).sum(axis=2)
        whole = ((mean * z) ** 2).sum(axis=1)
        left = squares_without_one(np.full((16, 1), 1 / 16), whole, crosses, squares).sum(axis=1)
        told.append(jackknife_error(np.sqrt(left)) / np.sqrt(whole.sum()) * np.linalg.norm(mean))
        norms.append(np.linalg.norm(mean))
    assert np.sqrt(np.mean(np.square(told))) == pytest.approx(np.std(norms), rel=0.15)


def test_the_spread_of_the_trace_over_groups_is_covered():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        found = spread_over_groups(rng.normal(10.0, 2.0, 16))
        held.append(
            [
                found[name].ci[0] <= truth <= found[name].ci[1]
                for name, truth in (("trace_batch_spread", 2.0), ("trace_batch_cv", 0.2))
            ]
        )
    assert (np.mean(held, axis=0) >= 0.93).all(), np.mean(held, axis=0)
    assert spread_over_groups(np.array([1.0, -1.0, 2.0, -2.0]))["trace_batch_cv"].value is None


def test_pseudo_values_have_the_figure_and_the_jackknife_error():
    without = np.array([1.0, 1.5, 0.7, 1.1])
    draws = pseudo_values(1.2, without)
    assert draws.mean() == pytest.approx(1.2)
    assert draws.std(ddof=1) / 2 == pytest.approx(jackknife_error(without))


def test_too_few_rows_are_said_and_an_error_that_is_off_is_not_taken():
    risk, _, _ = subject()
    few, events = SimpleNamespace(risk=risk.first_row(), batches=()), []
    assert groups_of(few, asked="auto", on_event=events.append) is None
    assert [e.code for e in events if isinstance(e, Warned)] == ["few-rows"]
    assert groups_of(SimpleNamespace(risk=risk, batches=()), asked="off", on_event=events.append) is None
    assert len(events) == 1
    metrics = {"trace": metric(1.0), "lambda_max": schema.Metric(value=None, reason="none")}
    say_not_measured(metrics, ["trace", "lambda_max", "absent"], "--data-error is off")
    assert metrics["trace"].reason == "data error not measured: --data-error is off"
    assert metrics["lambda_max"].reason == "none"
