"""One pass over the basis where it is enough, two where it is not; and what the coefficients see through noise."""

import numpy as np
import pytest
import torch
from minimal import DiagonalOperator, MinimalBasis, language_model_spectrum

from hesscli.linalg.krylov import lanczos as module
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.krylov.restart import thick_restart
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.storage import BasisStorage
from hesscli.linalg.tridiagonal import ritz_decomposition


class Single:
    """A diagonal matrix in float32."""

    def __init__(self, eigenvalues, dtype="float32"):
        sizes = [len(eigenvalues) // 3, len(eigenvalues) - len(eigenvalues) // 3]
        self.space = ParameterSpace(["a", "b"], [torch.empty(s) for s in sizes])
        self.space.storage = BasisStorage(dtype=dtype)
        self._diagonal = list(torch.as_tensor(eigenvalues, dtype=torch.float32).split(sizes))

    def matvec(self, v):
        return self.space.multiply(self._diagonal, v)


def grown(operator, steps, *, reorthogonalise=True):
    start = operator.space.random("gaussian", seed=1, index=0)
    state = LanczosState.start(operator.space, start, reorthogonalise=reorthogonalise)
    for _ in range(steps):
        state.expand(operator)
    return state


def worst_angle(state):
    gram = np.array([state.basis.inner(state.basis.vector(i)) for i in range(len(state.basis))])
    lengths = np.sqrt(np.diag(gram))
    return np.abs(gram / np.outer(lengths, lengths) - np.eye(len(gram))).max()


SPECTRA = {
    "language model": language_model_spectrum(3000),
    "ten decades": np.geomspace(1e-7, 1e3, 3000),
    "far from zero": 1e3 + np.random.default_rng(0).uniform(-1, 1, 3000),
    "even": np.linspace(-1, 1, 3000),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_one_pass_where_it_is_enough_is_as_orthogonal_as_two(spectrum, dtype, monkeypatch):
    once = worst_angle(grown(Single(SPECTRA[spectrum], dtype), 60))
    monkeypatch.setattr(module, "_TWICE", -1.0)
    twice = worst_angle(grown(Single(SPECTRA[spectrum], dtype), 60))
    assert once <= 1.5 * twice + 5e-7
    if dtype == "float32":
        assert once < 2e-6


@pytest.fixture
def seconds(monkeypatch):
    """How often a second pass was made."""
    made, both = [], MinimalBasis.subtract_then_inner
    monkeypatch.setattr(MinimalBasis, "subtract_then_inner", lambda self, c, v: made.append(1) or both(self, c, v))
    return made


def test_an_exact_product_needs_one_pass_and_one_that_lies_in_the_basis_two(seconds):
    operator = DiagonalOperator(language_model_spectrum(600))
    state, space = grown(operator, 30), operator.space
    assert not seconds
    product = space.random("gaussian", seed=2, index=0)
    space.scale(1e-6, product)
    for i in range(30):
        space.axpy(1.0, state.basis.vector(i), product)
    state.absorb(product)
    assert len(seconds) == 1
    state.store()
    vectors = np.array([space.joined(state.basis.vector(i)) for i in range(32)])
    assert np.abs(vectors @ vectors.T - np.eye(32)).max() < 1e-14


def test_restarts_leave_the_basis_orthogonal():
    state = grown(DiagonalOperator(np.linspace(-1, 2, 600)), 12)
    for _ in range(3):
        thick_restart(state, low=4, high=4)
        for _ in range(4):
            state.expand(DiagonalOperator(np.linspace(-1, 2, 600)))
    vectors = np.array([state.space.joined(state.basis.vector(i)) for i in range(12)])
    assert np.abs(vectors @ vectors.T - np.eye(12)).max() < 1e-13


# Of 25 outliers, those that an eigenvalue lies within 1e-2 of: in G, in its tridiagonal part, and in T without a basis.
@pytest.mark.parametrize(
    ("noise", "whole", "tridiagonal", "without"),
    [
        ({"relative": 1e-4}, 25, (25, 25), (20, 25)),
        ({"relative": 1e-2}, 25, (23, 25), (8, 16)),
        ({"relative": 1e-1}, 24, (0, 13), (0, 8)),
        ({"eta": 0.5}, 25, (20, 25), (10, 20)),
        ({"eta": 5.0}, 20, (4, 15), (2, 12)),
    ],
)
def test_the_whole_matrix_sees_outliers_that_its_tridiagonal_part_does_not(noise, whole, tridiagonal, without):
    spectrum = language_model_spectrum(8000)

    def found(values):
        return sum(np.abs(values - x).min() <= 1e-2 * abs(x) for x in spectrum[:25])

    def of_tridiagonal(state):
        return found(ritz_decomposition(np.array(state.alphas), np.array(state.betas[:-1]))[0])

    kept = grown(DiagonalOperator(spectrum, **noise), 60)
    dropped = grown(DiagonalOperator(spectrum, **noise), 60, reorthogonalise=False)
    assert found(np.linalg.eigvals(kept.projection()[0]).real) >= whole
    assert tridiagonal[0] <= of_tridiagonal(kept) <= tridiagonal[1]
    assert without[0] <= of_tridiagonal(dropped) <= without[1]
