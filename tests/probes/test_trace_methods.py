"""The trace by each method: intervals that cover, equal budgets, and the diagonal."""

import numpy as np
import pytest
import torch
from minimal import language_model_spectrum, with_spectrum
from simulation import LEAST, SPECTRA, operator_with, simulate, widest

from hesscli.events import Advanced, ignore
from hesscli.linalg.space import ParameterSpace
from hesscli.probes.trace import basis_length, trace

METHODS = ["krylov", "hutchinson", "hutch++", "xtrace"]
BLOCKS = [frozenset({0}), frozenset({2})]


def measured(operator, method, **options):
    settings = {"probes": 8, "steps": 8, "blocks": BLOCKS, "diagonal": False, "seed": 0, "on_event": ignore}
    return trace(operator, method=method, **{**settings, **options})


def truths_of(operator):
    diagonal, ends = np.diag(operator.matrix), np.cumsum([0, *operator.space.sizes])
    of_blocks = [diagonal[ends[i] : ends[i + 1]].sum() for i in (0, 2)]
    return np.array([diagonal.sum(), (operator.matrix**2).sum(), *of_blocks])


@pytest.mark.parametrize(
    ("spectrum", "probes"), [("language model", 8), ("language model", 24), ("flat", 8), ("near identity", 8)]
)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_and_are_not_idly_wide(method, spectrum, probes):
    operator = operator_with(SPECTRA[spectrum])
    truths = truths_of(operator)

    def run(seed):
        result = measured(operator, method, probes=probes, seed=seed)
        return [result.trace, result.squared_frobenius, *result.blocks]

    covered, widths, bias = simulate(run, truths if method != "xtrace" else truths[:2])
    assert (covered >= LEAST).all(), covered
    assert (widths <= widest(spectrum)).all(), widths
    assert (np.abs(bias) < 4).all(), bias


@pytest.mark.parametrize("method", METHODS)
def test_methods_spend_the_same_budget_and_say_on_what(method):
    operator = with_spectrum(language_model_spectrum(200))
    ticks = []
    result = measured(operator, method, probes=18, steps=12, on_event=lambda e: ticks.append(e))
    assert operator.num_matvecs == 30
    assert [e.done for e in ticks if isinstance(e, Advanced)] == list(range(1, 31))
    spent = {"krylov": (12, 18), "hutchinson": (0, 30), "hutch++": (20, 10), "xtrace": (30, 15)}
    assert (result.num_basis, result.num_probes) == spent[method]
    held = {"krylov": 12, "hutchinson": 0, "hutch++": 10, "xtrace": 30}
    assert basis_length(method, probes=18, steps=12) == held[method]


def test_draws_of_xtrace_are_those_of_its_definition():
    # Each vector in turn is left out of the sketch, and what the others' range leaves is sampled with it alone.
    from hesscli.linalg.estimators.xtrace import xtrace

    operator, k = operator_with(SPECTRA["language model"]), 6
    matrix, n = operator.matrix, operator.space.dimension
    found = xtrace(operator, vectors=k, seed=3, tick=lambda: None)
    vectors = np.array([operator.space.random("gaussian", seed=3, index=(1 << 42) + i) for i in range(k)]).T
    vectors *= np.sqrt(n) / np.linalg.norm(vectors, axis=0)
    for i in range(k):
        q, _ = np.linalg.qr(matrix @ np.delete(vectors, i, axis=1))
        g = vectors[:, i] - q @ (q.T @ vectors[:, i])
        factor = (n - k + 1) / (g @ g)
        inside = matrix @ g - q @ (q.T @ (matrix @ g))
        assert found.traces[i] == pytest.approx(np.trace(q.T @ matrix @ q), rel=1e-8)
        assert found.known_squares[i] == pytest.approx(np.linalg.norm(matrix @ q) ** 2, rel=1e-8)
        assert found.forms[i] == pytest.approx(factor * (g @ matrix @ g), rel=1e-6)
        assert found.full_squares[i] == pytest.approx(factor * np.linalg.norm(matrix @ g) ** 2, rel=1e-6)
        assert found.squares[i] == pytest.approx(factor * np.linalg.norm(inside) ** 2, rel=1e-6)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_a_matrix_of_low_rank_is_known_exactly(method):
    eigenvalues = np.concatenate([[7.0, 3.0, -2.0], np.zeros(197)])
    operator = operator_with(eigenvalues)
    result = measured(operator, method, probes=16, steps=8)
    assert result.trace.value == pytest.approx(8, rel=1e-9)
    assert result.squared_frobenius.value == pytest.approx(62, rel=1e-9)
    assert result.trace.ci == pytest.approx((8, 8), rel=1e-6)
    assert operator.num_matvecs <= 24


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eigenvalues", [[3.0], [3.0, -1.0], [3.0, -1.0, 0.0], [0.0] * 5])
def test_a_space_of_few_entries_gives_finite_figures(method, eigenvalues):
    sizes = [1] * len(eigenvalues)
    result = measured(with_spectrum(eigenvalues, sizes=sizes), method, blocks=[frozenset({0})])
    assert np.isfinite([result.trace.value, result.squared_frobenius.value, *result.trace.ci]).all()
    if method != "hutchinson":
        assert result.trace.value == pytest.approx(sum(eigenvalues), abs=1e-9)


@pytest.mark.parametrize("eigenvalues", [[1.0, 1.0], [0.3, -0.5, 0.1], [1.0] * 5])
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_a_sketch_that_falls_short_by_chance_is_not_taken_for_the_whole_range(method, eigenvalues):
    for seed in range(20):
        operator = operator_with(eigenvalues, sizes=[1] * len(eigenvalues), seed=seed)
        result = measured(operator, method, probes=16, seed=seed, blocks=[])
        assert result.trace.value == pytest.approx(sum(eigenvalues), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_the_size_of_a_matrix_in_float32_does_not_matter(method, size):
    def of(factor):
        diagonal = torch.as_tensor(factor * SPECTRA["language model"], dtype=torch.float32)
        return measured(Single(diagonal), method, blocks=[])

    found, truth = of(size), of(1.0)
    assert found.trace.value == pytest.approx(size * truth.trace.value, rel=1e-4)
    assert found.squared_frobenius.value == pytest.approx(size**2 * truth.squared_frobenius.value, rel=1e-4)


class Single:
    """A diagonal matrix in float32."""

    def __init__(self, diagonal):
        self.space, self._diagonal = ParameterSpace(["a"], [diagonal]), [diagonal]

    def matvec(self, v):
        return self.space.multiply(self._diagonal, v)


def test_a_matrix_on_the_sum_of_two_entries_is_found_by_the_sketch():
    operator = operator_with(np.ones(50), sizes=[20, 10, 20])
    operator.matrix = np.zeros((50, 50))
    operator.matrix[:2, :2] = 3.0
    for seed in range(20):  # of two signs one in two sums is zero
        assert measured(operator, "xtrace", seed=seed).trace.value == pytest.approx(6, rel=1e-9)


@pytest.mark.parametrize("method", ["krylov", "hutchinson", "hutch++"])
def test_the_diagonal_is_unbiased_with_standard_errors_that_hold(method):
    operator = operator_with(SPECTRA["language model"][:200])
    truth, total, scores = np.diag(operator.matrix), [], []
    for seed in range(60):
        sums = measured(operator, method, probes=12, diagonal=True, seed=seed).diagonal
        error = np.sqrt(sums.squares / (sums.count * (sums.count - 1)))
        total.append(sums.known + sums.mean)
        scores.append(((total[-1] - truth) / error) ** 2)
    spread = np.std(total, axis=0) / np.sqrt(60)
    assert np.mean((np.mean(total, axis=0) - truth) ** 2 / spread**2) == pytest.approx(1, abs=0.3)
    # A squared t variable with c - 1 degrees of freedom has mean (c - 1) / (c - 3).
    assert np.mean(scores) == pytest.approx((sums.count - 1) / (sums.count - 3), rel=0.3)


def test_the_diagonal_of_a_diagonal_matrix_is_exact_and_its_trace_is_covered():
    operator = operator_with(np.ones(90))
    operator.matrix = np.diag(np.arange(90.0))
    result = measured(operator, "hutchinson", diagonal=True)
    assert result.diagonal.mean == pytest.approx(np.arange(90.0), abs=1e-12)
    assert result.diagonal.squares == pytest.approx(np.zeros(90), abs=1e-12)
    assert result.trace.ci[0] <= 90 * 89 / 2 <= result.trace.ci[1]


def test_parts_of_the_trace_are_sums_of_the_diagonal():
    operator = operator_with(SPECTRA["language model"])
    result = measured(operator, "krylov", probes=1, diagonal=True)
    space, entries = operator.space, result.diagonal.known + result.diagonal.mean
    sums = space.inners(entries, np.ones(space.dimension))
    assert sum(p.value for p in result.parts) == pytest.approx(result.trace.value, rel=1e-12)
    assert result.diagonal.known.sum() == pytest.approx(result.trace.value - result.diagonal.mean.sum(), rel=0.05)
    assert sums.shape == (3,)
