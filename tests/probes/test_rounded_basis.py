"""A basis in fewer digits: intervals still cover, and are hardly wider than those of the full width."""

import numpy as np
import pytest
from minimal import language_model_spectrum
from simulation import LEAST, SPECTRA, FastOperator, operator_with

from hesscli.events import ignore
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.probes import density as module
from hesscli.probes.density import density
from hesscli.probes.trace import trace
from hesscli.run.figures.metrics import density_metrics, trace_metrics

KEPT = ["bfloat16", "int8"]
BLOCKS = [frozenset({0}), frozenset({1, 2})]


def density_of(operator, **options):
    settings = {"probes": 4, "steps": 20, "deflate": True, "window": None, "semi_definite": False, "noise": 1e-6}
    return density(operator, **{**settings, "seed": 0, "on_event": ignore, **options})


def trace_of(operator, method, seed, *, probes=8, steps=8):
    return trace(
        operator,
        method=method,
        probes=probes,
        steps=steps,
        blocks=BLOCKS,
        diagonal=True,
        seed=seed,
        on_event=ignore,
    )


def kept_as(operator, kept):
    return FastOperator(operator.matrix, operator.space.sizes.tolist(), kept=kept)


def width(metric):
    return metric.ci[1] - metric.ci[0]


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("spectrum", ["language model", "flat"])
def test_a_density_covers_with_a_rounded_basis(spectrum, kept, monkeypatch):
    points = np.array([-20.0, -0.5, -1e-3, 0.0, 0.01, 0.2, 1.0, 40.0])
    monkeypatch.setattr(module, "band_points", lambda _quadratures: points)
    eigenvalues = SPECTRA[spectrum]
    operator = operator_with(eigenvalues, kept=kept)
    at, before = (eigenvalues <= points[:, None]).mean(axis=1), (eigenvalues < points[:, None]).mean(axis=1)
    truth = {
        "lambda_max": eigenvalues.max(),
        "lambda_min": eigenvalues.min(),
        "trace": eigenvalues.sum(),
        "frobenius_norm": np.linalg.norm(eigenvalues),
        "negative_mass": (eigenvalues < 0).mean(),
    }
    held, inside = [], []
    for seed in range(200):
        result = density_of(operator, seed=seed)
        metrics = density_metrics(result, noise=1e-6)
        held.append([metrics[name].ci[0] <= value <= metrics[name].ci[1] for name, value in truth.items()])
        inside.append((result.band.low <= at + 1e-9) & (before - 1e-9 <= result.band.high))
    assert (np.mean(held, axis=0) >= LEAST).all(), np.mean(held, axis=0)
    assert (np.mean(inside, axis=0) >= LEAST).all(), np.mean(inside, axis=0)


@pytest.mark.parametrize("kept", KEPT)
def test_a_density_is_hardly_wider_with_a_rounded_basis(kept):
    operator = operator_with(language_model_spectrum(1500))
    whole, rounded = density_of(operator, steps=40), density_of(kept_as(operator, kept), steps=40)
    assert rounded.num_deflated >= 24  # the outliers, which a power step parts from rounding
    before, after = (density_metrics(result, noise=1e-6) for result in (whole, rounded))
    for name in ("lambda_max", "lambda_min", "trace", "frobenius_norm", "negative_mass"):
        assert width(after[name]) <= 1.6 * width(before[name]), name
    band = [np.mean(result.band.high - result.band.low) for result in (whole, rounded)]
    assert band[1] <= 1.2 * band[0]


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("method", ["krylov", "hutch++", "xtrace"])
def test_a_trace_covers_with_a_rounded_basis(method, kept):
    eigenvalues = SPECTRA["language model"]
    operator = operator_with(eigenvalues, kept=kept)
    ends = np.cumsum([0, *operator.space.sizes])
    diagonal = np.diag(operator.matrix)
    blocks = [diagonal[: ends[1]].sum(), diagonal[ends[1] :].sum()]
    held = []
    for seed in range(200):
        result = trace_of(operator, method, seed)
        metrics = trace_metrics(result, noise=result.rounding)
        found = [metrics["trace"].ci, metrics["frobenius_norm"].ci, *(b.ci for b in result.blocks)]
        truth = [eigenvalues.sum(), np.linalg.norm(eigenvalues), *blocks]
        held.append([low <= value <= high for (low, high), value in zip(found, truth, strict=False)])
    assert (np.mean(held, axis=0) >= LEAST).all(), np.mean(held, axis=0)


@pytest.mark.parametrize("kept", KEPT)
def test_a_trace_is_hardly_wider_with_a_rounded_basis(kept):
    operator = operator_with(language_model_spectrum(1500))
    for method, name in (("krylov", "trace"), ("krylov", "frobenius_norm"), ("hutch++", "trace")):
        widths = []
        for chosen in (operator, kept_as(operator, kept)):
            results = [trace_of(chosen, method, seed, probes=16, steps=16) for seed in range(20)]
            widths.append(np.median([width(trace_metrics(r, noise=1e-6 + r.rounding)[name]) for r in results]))
        # What int8 adds to an interval as sharp as that of the norm falls like 1 / sqrt(n): n is small here.
        assert widths[1] <= (2.5 if kept == "int8" else 1.6) * widths[0], (method, name)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("method", ["krylov", "hutch++"])
def test_the_exact_part_of_a_rounded_basis_is_right_to_its_skew(method, kept):
    # Rank 12 and more vectors than that: all but rounding is in the basis, and what that leaves is sampled.
    eigenvalues = np.concatenate([np.arange(1.0, 13), np.zeros(288)])
    operator = operator_with(eigenvalues, kept=kept)
    result = trace_of(operator, method, 0, probes=8, steps=14 if method == "krylov" else 43)
    assert 0 < result.rounding < 0.1
    norm = np.linalg.norm(eigenvalues)
    for found, truth, size in (
        (result.trace, eigenvalues.sum(), norm),
        (result.squared_frobenius, norm**2, norm**2),
    ):
        sampled = (found.ci[1] - found.ci[0]) / 2
        assert sampled < 0.3 * size
        assert abs(found.value - truth) <= result.rounding * size + sampled + 1e-9
    sums = result.diagonal
    assert (sums.known + sums.mean).sum() == pytest.approx(result.trace.value, rel=1e-3)


@pytest.mark.parametrize("kept", KEPT)
def test_the_slip_is_what_the_recurrence_is_off_by(kept):
    operator = operator_with(SPECTRA["flat"], kept=kept)
    state = LanczosState.start(operator.space, operator.space.random("gaussian", seed=0, index=0), reorthogonalise=True)
    vectors, exact = [], []
    for _ in range(20):
        vectors.append(operator.space.copy(state.current))
        product = operator.matrix @ state.current
        state.expand(operator)
        previous = state.betas[-2] * vectors[-2] if len(vectors) > 1 else 0.0
        left = product - state.alphas[-1] * vectors[-1] - previous - state.betas[-1] * state.current
        exact.append(np.linalg.norm(left))
    assert max(exact) == pytest.approx(state.slip, rel=0.1)
    # Rounding errors meet a vector at 1 / sqrt(n) of their length; the product itself would be rounded by all of it.
    assert state.slip < operator.space.basis().rounding * np.sqrt(20 / 300) * np.abs(SPECTRA["flat"]).max()
    assert state.noise() == 0.0
