"""density, trace and blockdiag against dense truth; intervals that cover."""

import numpy as np
import pytest
from minimal import language_model_spectrum, with_spectrum
from tiny import CONFIGS, dense_hessian, ragged_slice, risk_of, spectrum_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.selection import partition
from hesscli.events import ignore
from hesscli.probes.blockdiag import blockdiag
from hesscli.probes.density import density
from hesscli.probes.trace import trace


def operator_of(name):
    return HessianOperator(risk_of(tiny_model(name), ragged_slice(), 5), keep_graph=True)


def places_of(space, blocks):
    ends = np.cumsum([0, *space.numels])
    return [np.concatenate([np.arange(ends[p], ends[p + 1]) for p in sorted(b)]) for b in blocks]


def covers(estimate, truth):
    return estimate.ci[0] <= truth <= estimate.ci[1]


def holds(estimate, truth):
    """Within twice the 95 % interval: of some fifty statements below, none should fail by chance."""
    return abs(estimate.value - truth) <= estimate.ci[1] - estimate.ci[0]


def band_holds(band, eigenvalues):
    """The share of the band's points at which it holds the distribution; 1e-9 for rounding in the truth."""
    below = np.array([(eigenvalues <= x).mean() for x in band.x])
    strictly = np.array([(eigenvalues < x).mean() for x in band.x])
    return np.mean((band.low <= below + 1e-9) & (strictly - 1e-9 <= band.high))


@pytest.mark.parametrize("name", CONFIGS)
def test_density_of_a_tiny_model_holds_its_dense_figures(name):
    operator, truth = operator_of(name), spectrum_of(name)
    result = density(
        operator,
        probes=6,
        steps=30,
        deflate=True,
        window=None,
        semi_definite=False,
        noise=1e-6,
        seed=0,
        on_event=ignore,
    )
    assert holds(result.trace, truth.sum())
    assert holds(result.squared_frobenius, (truth**2).sum())
    low, high = result.negative_mass_bounds
    assert low <= (truth < 0).mean() <= high
    assert band_holds(result.band, truth) > 0.95
    for q in result.quadratures:
        assert q.weights.sum() == pytest.approx(1, abs=1e-12)
        for value, residual in ((q.values[-1], q.residual_norms[-1]), (q.values[0], q.residual_norms[0])):
            assert np.abs(truth - value).min() <= residual + 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("window", [None, 0, 5])
def test_the_band_holds_the_distribution_of_a_language_model(window, deflate):
    eigenvalues = language_model_spectrum(1500)
    operator = with_spectrum(eigenvalues)
    held = []
    for seed in range(8):
        result = density(
            operator,
            probes=2,
            steps=40,
            deflate=deflate,
            window=window,
            semi_definite=False,
            noise=0.0,
            seed=seed,
            on_event=ignore,
        )
        held.append(band_holds(result.band, eigenvalues))
        assert (np.diff(result.band.low) >= 0).all()
        assert (np.diff(result.band.high) >= 0).all()
    assert np.mean(held) > 0.95


def test_the_band_is_narrow_where_steps_resolve_and_wide_where_not():
    operator = with_spectrum(language_model_spectrum(1500))
    band = density(
        operator, probes=2, steps=40, deflate=True, window=None, semi_definite=False, noise=0.0, seed=0, on_event=ignore
    ).band
    width = band.high - band.low
    assert width[np.abs(band.x) > 1].max() < 0.05
    assert width[np.argmin(np.abs(band.x))] > 0.5


def test_lockstep_probes_are_the_probes_run_alone():
    operator = with_spectrum(language_model_spectrum(200))
    both = density(
        operator, probes=2, steps=15, deflate=True, window=None, semi_definite=False, noise=0.0, seed=4, on_event=ignore
    )
    alone = density(
        operator, probes=1, steps=15, deflate=True, window=None, semi_definite=False, noise=0.0, seed=4, on_event=ignore
    )
    assert both.quadratures[0].values == pytest.approx(alone.quadratures[0].values, rel=1e-12)
    assert operator.num_matvecs == 15 * 3 + 2 * 15


def test_a_spectrum_of_few_values_ends_early_and_exactly():
    operator = with_spectrum([2.0] * 30 + [-1.0] * 30)
    result = density(
        operator, probes=3, steps=20, deflate=True, window=None, semi_definite=False, noise=0.0, seed=0, on_event=ignore
    )
    assert result.num_steps == 2
    for q in result.quadratures:
        assert np.unique(q.values.round(9)).tolist() == [-1, 2]
        assert q.weights[q.values > 0].sum() == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize("name", CONFIGS)
def test_trace_and_its_blocks_hold_the_dense_figures(name):
    operator, dense = operator_of(name), dense_hessian(name)
    blocks = [b.parts for b in partition(operator.space.names, by="layer")]
    result = trace(
        operator, method="krylov", diagonal=False, probes=12, steps=16, blocks=blocks, seed=0, on_event=ignore
    )
    assert holds(result.trace, np.trace(dense))
    assert holds(result.squared_frobenius, (dense**2).sum())
    for estimate, places in zip(result.blocks, places_of(operator.space, blocks), strict=True):
        assert holds(estimate, np.diag(dense)[places].sum())
    assert sum(e.value for e in result.blocks) == pytest.approx(result.trace.value, rel=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_of_a_tiny_model_agree_with_the_dense_ones(name):
    operator, dense = operator_of(name), dense_hessian(name)
    space = operator.space
    blocks = [b.parts for b in partition(space.names, by="layer")]
    places = places_of(space, blocks)
    probes = 6
    result = blockdiag(operator, blocks=blocks, probes=probes, seed=0, on_event=ignore)
    assert result.linearity.max() < 1e-5
    for i in range(probes):
        v = np.concatenate([p.numpy().ravel() for p in space.random("rademacher", seed=0, index=i)]).astype(float)
        whole = dense @ v
        for b, at in enumerate(places):
            own = dense[np.ix_(at, at)] @ v[at]
            expected = np.linalg.norm(whole[at] - own) / np.linalg.norm(whole[at])
            assert result.relative_errors[i, b] == pytest.approx(expected, rel=1e-4)
            cosine = whole[at] @ own / np.linalg.norm(whole[at]) / np.linalg.norm(own)
            assert result.cosines[i, b] == pytest.approx(cosine, abs=1e-4)
            for a, there in enumerate(places):
                square = np.linalg.norm(dense[np.ix_(there, at)] @ v[at]) ** 2
                assert result.squared_norms[i, a, b] == pytest.approx(square, rel=1e-4, abs=1e-9)


def test_coupling_norms_are_unbiased():
    operator = with_spectrum(language_model_spectrum(60), sizes=[20, 15, 25])
    blocks = [frozenset({i}) for i in range(3)]
    result = blockdiag(operator, blocks=blocks, probes=400, seed=0, on_event=ignore)
    ends = np.cumsum([0, 20, 15, 25])
    found = result.coupling()
    norms, errors = found.norms, found.errors
    for a in range(3):
        for b in range(3):
            truth = np.linalg.norm(operator.matrix[ends[a] : ends[a + 1], ends[b] : ends[b + 1]])
            assert abs(norms[a, b] - truth) < 4 * errors[a, b]
            assert errors[a, b] < 0.1 * truth
    fraction = result.off_block_fraction
    inside = sum(np.linalg.norm(operator.matrix[ends[a] : ends[a + 1], ends[a] : ends[a + 1]]) ** 2 for a in range(3))
    assert fraction.ci[0] <= 1 - inside / np.linalg.norm(operator.matrix) ** 2 <= fraction.ci[1]


def test_a_block_diagonal_matrix_passes_its_own_test():
    operator = with_spectrum([1.0] * 30, sizes=[10, 10, 10])
    rng = np.random.default_rng(0)
    operator.matrix = np.zeros((30, 30))
    for start in (0, 10, 20):
        block = rng.standard_normal((10, 10))
        operator.matrix[start : start + 10, start : start + 10] = block + block.T
    result = blockdiag(operator, blocks=[frozenset({i}) for i in range(3)], probes=3, seed=0, on_event=ignore)
    assert result.relative_errors.max() < 1e-12
    assert result.cosines.min() > 1 - 1e-12
    assert result.off_block_fraction.value < 1e-20


def test_a_matrix_without_block_structure_has_the_baseline_cosine():
    rng = np.random.default_rng(0)
    n, count = 400, 16
    operator = with_spectrum(np.ones(n), sizes=[n // count] * count)
    wigner = rng.standard_normal((n, n))
    operator.matrix = (wigner + wigner.T) / 2
    blocks = [frozenset({i}) for i in range(count)]
    result = blockdiag(operator, blocks=blocks, probes=20, seed=0, on_event=ignore)
    assert result.cosines.mean() == pytest.approx(count**-0.5, abs=0.05)


def test_a_product_that_is_not_linear_shows_in_the_residual():
    operator = with_spectrum(language_model_spectrum(60), sizes=[20, 15, 25])
    exact, rng = operator.matvec, np.random.default_rng(0)

    def noisy(v):
        out = exact(v)
        operator.space.axpy(20.0, operator.space.split(rng.standard_normal(60)), out)
        return out

    operator.matvec = noisy
    result = blockdiag(operator, blocks=[frozenset({i}) for i in range(3)], probes=2, seed=0, on_event=ignore)
    assert result.linearity.min() > 0.05
