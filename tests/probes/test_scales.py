"""Figures do not depend on the unit of the loss: eigenvalues of 1e-35 and 1e35, in float32."""

import numpy as np
import pytest
import torch
from minimal import language_model_spectrum

from hesscli.events import ignore
from hesscli.linalg.mapped_space import MappedSpace
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.storage import BasisStorage
from hesscli.probes import density as module
from hesscli.probes.density import density
from hesscli.probes.solve import solve
from hesscli.probes.topk import topk
from hesscli.probes.trace import trace
from hesscli.run.figures.metrics import density_metrics, topk_metrics, trace_metrics

SPECTRA = {"language model": language_model_spectrum(300), "rank one": np.append(500.0, np.zeros(299))}
# Of the largest eigenvalue: float32 begins at 1e-38 and ends at 3e38.
SCALES = [1e-35, 1e-30, 1e-20, 1.0, 1e18, 1e30, 1e35]


class Reflected:
    """(I - 2 u u^T) D (I - 2 u u^T) in float32, for eigenvectors that are not the coordinates."""

    def __init__(self, spectrum, scale, *, dtype="float32"):
        sizes = [100, 200]
        self.space = ParameterSpace(["a", "b"], [torch.empty(s) for s in sizes])
        self.space.storage = BasisStorage(dtype=dtype)
        self._values = list(torch.as_tensor(spectrum / np.abs(spectrum).max() * scale).float().split(sizes))
        self._u = self.space.random("gaussian", seed=9, index=0)
        self.space.scale(1.0 / self.space.norm(self._u), self._u)

    def matvec(self, v):
        w = self.space.copy(v)
        self.space.axpy(-2.0 * self.space.inner(self._u, w), self._u, w)
        w = self.space.multiply(self._values, w)
        self.space.axpy(-2.0 * self.space.inner(self._u, w), self._u, w)
        return w

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


def figures(spectrum, scale, monkeypatch):
    """In units of the scale."""
    monkeypatch.setattr(module, "band_points", lambda _quadratures: np.array([-1.0, 0.0, 1.0]) * scale)
    operator, found = Reflected(spectrum, scale), {}
    for dtype in ("float32", "bfloat16"):
        narrow = Reflected(spectrum, scale, dtype=dtype)
        pairs = topk(narrow, k=1, which="largest", max_steps=40, tolerance=3e-3, seed=0, on_event=ignore)
        found[f"topk, {dtype}"] = topk_metrics(pairs, noise=1e-6)["lambda_max"].ci, pairs.status.name
    for method in ("krylov", "hutch++", "xtrace"):
        sums = trace(operator, method=method, probes=6, steps=6, blocks=[], diagonal=False, seed=0, on_event=ignore)
        metrics = trace_metrics(sums, noise=1e-6)
        found[method] = (*metrics["trace"].ci, *metrics["frobenius_norm"].ci), ""
    options = {"probes": 2, "steps": 12, "deflate": True, "window": None, "semi_definite": False, "noise": 1e-6}
    metrics = density_metrics(density(operator, **options, seed=0, on_event=ignore), noise=1e-6)
    found["density"] = (*metrics["lambda_max"].ci, *metrics["trace"].ci, *metrics["frobenius_norm"].ci), ""
    rhs = operator.space.random("gaussian", seed=3, index=0)
    for solver in ("cg", "minres"):
        options = {"solver": solver, "preconditioner": None, "floor": None, "tolerance": 1e-4, "max_steps": 60}
        (solution,) = solve(operator, rhs, dampings=[0.3 * scale], **options, on_event=ignore)
        found[solver] = (scale**2 * solution.norm, scale**2 * solution.form), solution.ending.name
    return {name: ([float(x) / scale for x in numbers], word) for name, (numbers, word) in found.items()}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_figures_have_the_unit_of_the_loss_and_do_not_depend_on_it(spectrum, monkeypatch):
    truth = figures(SPECTRA[spectrum], 1.0, monkeypatch)
    for scale in SCALES:
        for name, (numbers, word) in figures(SPECTRA[spectrum], scale, monkeypatch).items():
            assert word == truth[name][1], (scale, name)
            assert numbers == pytest.approx(truth[name][0], rel=2e-2, abs=1e-5), (scale, name)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-22, 1.0, 1e25])
def test_a_vector_that_is_short_or_long_for_its_numbers_is_brought_to_unit_length(size, tmp_path):
    shapes = [torch.empty(300), torch.empty(40, 20)]
    for space in (ParameterSpace(["a", "b"], shapes), MappedSpace(["a", "b"], shapes, tmp_path)):
        v = space.random("gaussian", seed=0, index=0)
        for part in v:
            part.mul_(size)
        wide = np.concatenate([part.double().numpy().ravel() for part in v])
        assert space.norm(v) == pytest.approx(np.linalg.norm(wide), rel=1e-6)
        space.scale(1.0 / space.norm(v), v)
        assert space.norm(v) == pytest.approx(1.0, rel=1e-6)
