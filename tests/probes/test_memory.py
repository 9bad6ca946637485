"""What probes hold at their worst moment, counted in vectors by the bytes of living tensors."""

import pytest
import torch
from live_bytes import peak_of

from hesscli.events import ignore
from hesscli.linalg.space import ParameterSpace
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


def spectrum(*, bulk):
    """Eight outliers down to 8, then a bulk of this width."""
    n = sum(torch.Size(s).numel() for s in SIZES)
    return torch.cat([8 * 1.4 ** torch.arange(8.0), torch.linspace(-bulk, bulk, n - 8)])


def vectors_held(operator, work):
    return peak_of(work) / operator.space.vector_bytes()


@pytest.mark.parametrize(("window", "held"), [(0, 3), (2, 5)])
def test_density_without_a_basis_holds_three_vectors_a_probe(window, held):
    operator = DiagonalOperator(spectrum(bulk=1.0))

    def work():
        density(
            operator,
            probes=10,
            steps=80,
            deflate=False,
            window=window,
            semi_definite=False,
            noise=0.0,
            seed=0,
            on_event=ignore,
        )

    # Beside them the last start, what an inner product multiplies of one parameter, and small change.
    assert vectors_held(operator, work) < held * 10 + 1 + 0.75


@pytest.mark.parametrize("krylov_dim", [2 * ROWS, 3 * ROWS])
def test_restarted_topk_holds_its_basis_and_a_few_vectors(krylov_dim, monkeypatch):
    # What a restart and a product with the basis read at a time is bounded, and beside so small a space as small.
    monkeypatch.setattr("hesscli.linalg.basis._COLUMNS", ROWS * 16)
    operator = DiagonalOperator(spectrum(bulk=7.5))
    found = []

    def work():
        found.append(
            topk(
                operator,
                k=5,
                which="both",
                max_steps=200,
                tolerance=1e-3,
                seed=0,
                on_event=ignore,
                krylov_dim=krylov_dim,
            )
        )

    held = vectors_held(operator, work)
    assert found[0].num_steps > 2 * krylov_dim  # it was restarted
    assert held < krylov_dim + 5
