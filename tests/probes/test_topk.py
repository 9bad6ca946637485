"""topk: right values, right flags, nothing shown as converged that is not."""

import numpy as np
import pytest
from minimal import DenseOperator, DiagonalOperator, language_model_spectrum, with_spectrum
from tiny import ragged_slice, risk_of, spectrum_of, tiny_model

from hesscli.curvature.double_backward import HessianOperator
from hesscli.events import ignore
from hesscli.linalg.status import Status
from hesscli.probes.topk import topk
from hesscli.run.figures.metrics import topk_metrics


def run(operator, **options):
    settings = {"k": 5, "which": "both", "max_steps": 100, "tolerance": 1e-3, "seed": 0, "on_event": ignore}
    return topk(operator, **{**settings, **options})


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_both_ends_agree_with_the_dense_hessian(name):
    operator = HessianOperator(risk_of(tiny_model(name), ragged_slice(), 3), keep_graph=True)
    result = run(operator, k=3)
    truth = spectrum_of(name)
    values = np.array([p.value for p in result.pairs])
    assert result.status is Status.CONVERGED
    assert values == pytest.approx(np.concatenate([truth[::-1][:3], truth[:3][::-1]]), rel=1e-4)
    assert result.completeness.complete
    rounding = 1e-5 * np.abs(truth).max()  # of the product and of the dense matrix, both in float32
    for pair in result.pairs:
        assert pair.bar <= pair.residual_norm
        assert np.abs(truth - pair.value).min() <= pair.bar + rounding


def test_a_language_model_spectrum_gives_its_outliers():
    eigenvalues = language_model_spectrum(600)
    result = run(with_spectrum(eigenvalues), k=5)
    truth = np.sort(eigenvalues)
    expected = np.concatenate([truth[::-1][:5], truth[:5][::-1]])
    assert [p.value for p in result.pairs] == pytest.approx(expected.tolist(), rel=1e-6)
    assert all(p.converged for p in result.pairs)
    assert result.num_high == 5
    assert result.num_steps < 60
    assert result.orthogonality_loss < 1e-12


def test_values_of_alternating_sign_are_not_mixed_up():
    # Power iteration with deflation returns 7.51, 9.78 and -7.42 here.
    result = run(with_spectrum([10, -9.9, 9.8, 5, *np.linspace(0, 1, 80)]), k=2)
    assert [p.value for p in result.pairs] == pytest.approx([10, 9.8, 0, -9.9], abs=1e-3)


def test_one_large_eigenvalue_is_reported_once():
    # Lanczos without reorthogonalisation returns eight copies of 100, all of them converged.
    result = run(with_spectrum([100, 90, 80, *np.linspace(0, 1, 150)]), k=8, which="largest", max_steps=80)
    values = np.array([p.value for p in result.pairs])
    assert values[:3] == pytest.approx([100, 90, 80], rel=1e-8)
    assert (values[3:] <= 1 + 1e-9).all()


def test_no_value_lies_beyond_the_spectrum_after_breakdown():
    # Going on through a breakdown gives 101.47 above a maximum of 100.
    result = run(with_spectrum([100.0] * 10 + [50.0] * 30 + [1.0] * 30 + [-3.0] * 10), k=3)
    values = [p.value for p in result.pairs]
    assert max(values) == pytest.approx(100, abs=1e-9)
    assert min(values) == pytest.approx(-3, abs=1e-9)


def test_copies_of_a_multiple_eigenvalue_appear_once_the_krylov_space_is_exhausted():
    result = run(with_spectrum([5.0] * 3 + [1.0] * 40), k=3, which="largest", max_steps=43)
    assert [p.value for p in result.pairs] == pytest.approx([5, 5, 5], abs=1e-9)


def test_a_budget_that_is_too_small_marks_what_did_not_converge():
    operator = with_spectrum(language_model_spectrum(600))
    result = run(operator, k=8, max_steps=12)
    assert result.status is Status.BUDGET_SPENT
    flags = [p.converged for p in result.pairs]
    assert flags[0]
    assert not all(flags)
    for pair in result.pairs:
        assert pair.converged == (pair.residual_norm <= 1e-3 * abs(pair.value) + 1e-12)


def test_residuals_come_from_products_of_their_own():
    # Every product of the basis is off by a fixed small vector: Lanczos itself cannot see it, certification does.
    eigenvalues = language_model_spectrum(300)
    exact = with_spectrum(eigenvalues)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(exact.matrix.shape) * 0.02
    noisy = DenseOperator(exact.matrix + noise, exact.space)
    result = run(noisy, k=2, tolerance=1e-6)
    assert result.asymmetry > 1e-6
    assert not result.pairs[0].converged


def test_the_whole_spectrum_of_a_small_matrix():
    eigenvalues = [-2.0, -1.0, 0.5, 3.0, 4.0]
    result = run(with_spectrum(eigenvalues, sizes=[2, 1, 2]), k=5)
    assert sorted(p.value for p in result.pairs) == pytest.approx(eigenvalues, abs=1e-10)
    assert result.status in (Status.SPACE_EXHAUSTED, Status.CONVERGED)


def test_one_end_alone():
    operator = with_spectrum(language_model_spectrum(300))
    assert all(p.value > 0 for p in run(operator, which="largest", k=2).pairs)
    assert all(p.value < 0 for p in run(operator, which="smallest", k=2).pairs)


def test_cost_is_steps_and_one_product_for_each_pair_and_guard_and_the_probe():
    operator = with_spectrum(language_model_spectrum(300))
    result = run(operator, k=4)
    assert operator.num_matvecs == result.num_steps + 2 * (4 + 2) + result.completeness.num_matvecs


@pytest.mark.parametrize("krylov_dim", [22, 30])
def test_in_bounded_memory_the_pairs_are_the_same(krylov_dim):
    spectrum = language_model_spectrum(600)
    whole, bounded = (run(DiagonalOperator(spectrum), krylov_dim=m) for m in (None, krylov_dim))
    assert bounded.status is Status.CONVERGED
    assert bounded.num_steps <= 1.5 * whole.num_steps
    for a, b in zip(whole.pairs, bounded.pairs, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-6)
    assert bounded.reach == 0.0


@pytest.mark.parametrize(("krylov_dim", "tolerance", "times"), [(None, 3e-2, 1), (9, 3e-2, 1), (None, 1e-3, 3)])
def test_a_basis_from_a_noisy_product_is_certified_with_the_exact_one(krylov_dim, tolerance, times):
    spectrum = language_model_spectrum(4000)
    exact, noisy = DiagonalOperator(spectrum), DiagonalOperator(spectrum, relative=1e-2)
    result = run(
        exact, k=3, which="largest", tolerance=tolerance, max_steps=60, krylov_dim=krylov_dim, basis_operator=noisy
    )
    assert noisy.num_matvecs == result.num_steps
    assert exact.num_matvecs == times * (3 + 2) + result.completeness.num_matvecs
    assert result.status is Status.CONVERGED
    truth = np.sort(spectrum)[::-1][:3]
    for pair, value in zip(result.pairs, truth, strict=True):
        assert abs(pair.value - value) <= pair.bar < 0.15 * tolerance * value


def test_pairs_that_converged_and_could_not_be_certified_are_not_for_more_steps():
    spectrum = language_model_spectrum(4000)
    noisy, exact = DiagonalOperator(spectrum, relative=1e-2), DiagonalOperator(spectrum)
    result = run(noisy, k=3, which="largest", tolerance=1e-4, max_steps=60, basis_operator=exact)
    assert result.num_steps < 60
    assert result.status is Status.NOT_CERTIFIED
    assert "--steps" not in result.status.value
    assert not any(p.converged for p in result.pairs)


def test_quadratic_forms_are_taken_on_the_certified_vectors():
    spectrum = language_model_spectrum(400)
    operator = DiagonalOperator(spectrum)
    parts = np.random.default_rng(0).dirichlet(np.ones(3), size=400).T * spectrum

    def forms(vectors):
        squares = np.array([operator.space.joined(v) ** 2 for v in vectors])
        return parts @ squares.T

    result = run(operator, k=2, quadratic_forms=forms)
    assert result.quadratic_forms.shape == (3, 4)
    assert result.quadratic_forms.sum(axis=0) == pytest.approx([p.value for p in result.pairs])
    assert run(operator, k=2).quadratic_forms is None


def test_eigenvalues_at_both_ends_come_out_of_a_noisy_product():
    spectrum = language_model_spectrum(8000)
    truth = np.sort(spectrum)
    expected = np.concatenate([truth[::-1][:5], truth[:5][::-1]])
    for relative, worst in ((1e-4, 1e-5), (1e-2, 1e-3)):
        result = run(DiagonalOperator(spectrum, relative=relative), tolerance=3e-2, max_steps=60)
        assert [p.value for p in result.pairs] == pytest.approx(expected.tolist(), rel=worst)


@pytest.mark.parametrize("krylov_dim", [None, 24])
def test_the_whole_gram_schmidt_matrix_sees_through_noise_that_rayleigh_quotients_do_not(krylov_dim):
    # At a tenth of each product's length their error is 4 % at the upper end and 8 to 18 % at the lower.
    spectrum = language_model_spectrum(8000)
    truth = np.sort(spectrum)
    result = run(DiagonalOperator(spectrum, relative=0.1), tolerance=3e-2, max_steps=60, krylov_dim=krylov_dim)
    expected = np.concatenate([truth[::-1][:5], truth[:5][::-1]])
    assert [p.value for p in result.pairs] == pytest.approx(expected.tolist(), rel=1e-2)
    for pair, value in zip(result.pairs, expected, strict=True):
        assert abs(pair.value - value) <= pair.bar


def test_one_pair_alone_is_not_taken_for_the_largest_after_a_few_steps():
    # Converged pairs hide what a random start has missed; 23 steps make an eigenvalue far beyond them unlikely.
    result = run(with_spectrum([9.0, *np.linspace(-0.1, 0.1, 900)]), k=1, which="largest")
    assert result.reach <= 0.05 * 9.0
    assert result.status is Status.CONVERGED


def test_ends_that_noise_makes_are_within_their_error():
    # Noise of length 0.5 spreads the bulk over [-1, 1]: a lambda_min of -1 is noise, and its interval says so.
    eigenvalues = [50.0, *np.linspace(-0.1, 0.1, 900)]
    exact, rng = with_spectrum(eigenvalues), np.random.default_rng(0)

    class Noisy:
        space = exact.space

        def matvec(self, v):
            out, error = exact.matvec(v), self.space.split(rng.standard_normal(901))
            self.space.axpy(0.5 * self.space.norm(v) / self.space.norm(error), error, out)
            return out

        def matvecs(self, vs):
            return [self.matvec(v) for v in vs]

    result = run(Noisy(), k=1, max_steps=40)
    metric = topk_metrics(result, noise=0.0)["lambda_min"]
    assert metric.errors.precision > 0.5
    assert metric.ci[0] <= -0.1 <= metric.ci[1]


def test_gradient_descent_diverges_beyond_the_largest_stable_learning_rate_and_not_below_it():
    eigenvalues = np.concatenate([[40.0, 11.0], np.linspace(0.1, 1, 100)])
    rate = topk_metrics(run(DiagonalOperator(eigenvalues), k=1), noise=1e-9)["max_stable_learning_rate"]
    assert rate.ci[0] <= 2 / 40 <= rate.ci[1]
    assert np.abs(1 - rate.ci[0] * (1 - 1e-6) * eigenvalues).max() < 1 < np.abs(1 - rate.ci[1] * 1.001 * 40)
    below = topk_metrics(run(DiagonalOperator(-eigenvalues), k=1), noise=1e-9)["max_stable_learning_rate"]
    assert below.value is None
    assert "not above zero" in below.reason
