"""What probes hold at their worst moment, counted in vectors by the bytes of living tensors."""

import pytest
import torch
from live_bytes import peak_of

from hesscli.events import ignore
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.status import Status
from hesscli.linalg.storage import ROWS
from hesscli.probes.density import density
from hesscli.probes.topk import topk

SIZES = [(96, 64), (4096,), (2048,)]


class DiagonalOperator:
    """A diagonal matrix over parameters; its product is one vector and nothing besides."""

    def __init__(self, eigenvalues):
        self.space = ParameterSpace([str(i) for i in range(len(SIZES))], [torch.empty(s) for s in SIZES])
        flat = torch.as_tensor(eigenvalues, dtype=torch.float32)
        self._diagonal = [p.view(s) for p, s in zip(flat.split(list(self.space.numels)), SIZES, strict=True)]

    def matvec(self, v):
        return self.space.multiply(self._diagonal, v)

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


def spectrum(*, ratio, bulk):
    """Eight outliers from 8 up, each this many times the one before, and a bulk of this width."""
    n = sum(torch.Size(s).numel() for s in SIZES)
    return torch.cat([8 * ratio ** torch.arange(8.0), torch.linspace(-bulk, bulk, n - 8)])


def vectors_held(operator, work):
    return peak_of(work) / operator.space.vector_bytes()


@pytest.mark.parametrize(("window", "steps", "held"), [(0, 80, 3), (2, 20, 5)])
def test_density_without_a_basis_holds_three_vectors_a_probe(window, steps, held):
    operator = DiagonalOperator(spectrum(ratio=1.4, bulk=1.0))

    def work():
        density(
            operator,
            probes=10,
            steps=steps,
            deflate=False,
            window=window,
            semi_definite=False,
            noise=0.0,
            seed=0,
            on_event=ignore,
        )

    # Beside them what an inner product multiplies of one parameter, and small change.
    assert vectors_held(operator, work) < held * 10 + 0.75


def test_restarted_topk_holds_its_basis_and_a_few_vectors(monkeypatch):
    # What is read of a basis and drawn of a vector at a time is bounded: beside so small a space as small.
    monkeypatch.setattr("hesscli.linalg.basis._COLUMNS", 512)
    monkeypatch.setattr("hesscli.linalg.random._CHUNK", 512)
    operator, krylov_dim, found = DiagonalOperator(spectrum(ratio=1.02, bulk=7.9)), 2 * ROWS, []

    def work():
        found.append(
            topk(
                operator,
                k=5,
                which="largest",
                max_steps=150,
                tolerance=1e-3,
                seed=0,
                on_event=ignore,
                krylov_dim=krylov_dim,
            )
        )

    held = vectors_held(operator, work)
    assert found[0].status is Status.CONVERGED  # so certified, and searched for what was missed
    assert found[0].num_steps > 2 * krylov_dim
    assert held < krylov_dim + 5
