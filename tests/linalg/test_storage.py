"""Bases on the host, on disk and in fewer digits: the same algebra, and the accuracy that the digits give."""

import gc
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hesscli.errors import DoesNotFitError
from hesscli.events import ignore
from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.storage import BasisStorage
from hesscli.probes.topk import topk

SHAPES = [(50, 300), (257,), (1,), (3, 5, 7), (60, 300)]


def space_of(place="device", dtype="float32", *, folder=None, shapes=SHAPES, wide=False):
    zeros = [torch.zeros(s, dtype=torch.float64 if wide else torch.float32) for s in shapes]
    space = ParameterSpace([f"p{i}" for i in range(len(shapes))], zeros)
    space.storage = BasisStorage(place, dtype, folder)
    return space


def flat(v):
    return torch.cat([p.reshape(-1) for p in v]).double().numpy()


def filled(space, count):
    basis = space.basis()
    vectors = [space.random("gaussian", seed=2, index=i) for i in range(count)]
    for v in vectors:
        basis.append(v)
    return basis, np.array([flat(v) for v in vectors]).T


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("bfloat16", 2.0**-9), ("int8", 2.0**-7)])
def test_what_is_kept_comes_back_and_every_verb_speaks_of_the_same_vectors(place, dtype, error):
    space = space_of(place, dtype)
    basis, given = filled(space, 21)
    kept = np.array([flat(basis.vector(i)) for i in range(21)]).T
    assert np.abs(kept - given).max() <= 2 * error * np.abs(given).max()
    assert (np.linalg.norm(kept - given, axis=0) <= error * np.linalg.norm(given, axis=0)).all()
    assert (error > 0) == bool(np.abs(kept - given).max() > 0) == (basis.rounding > 0)
    v = space.random("gaussian", seed=3, index=0)
    assert basis.inner(v) == pytest.approx(kept.T @ flat(v), rel=1e-5, abs=1e-3)
    c = np.random.default_rng(0).standard_normal((21, 18))
    made = np.array([flat(u) for u in basis.combine(c)]).T
    assert np.abs(made - kept @ c).max() < 1e-4
    expected = flat(v) - kept @ c[:, 0]
    basis.subtract(c[:, 0], v)
    assert np.abs(flat(v) - expected).max() < 1e-4
    basis.recombine(c)
    assert len(basis) == 18
    made = np.array([flat(basis.vector(i)) for i in range(18)]).T
    assert np.linalg.norm(made - kept @ c) <= (error + 1e-6) * np.linalg.norm(kept @ c)
    basis.recombine(np.eye(18)[:, :3])
    basis.append(space.zeros())
    assert len(basis) == 4


def test_a_float64_model_keeps_its_digits_and_an_exact_basis_too():
    basis, given = filled(space_of(wide=True), 2)
    assert (flat(basis.vector(1)) == given[:, 1]).all()
    space = space_of(dtype="int8")
    assert space.basis().rounding > 0
    assert space.basis(exact=True).rounding == 0


def test_a_vector_takes_what_its_digits_take():
    n, wide = 10**6, torch.float32
    assert [BasisStorage(dtype=d).vector_bytes(n, wide) / n for d in ("float32", "bfloat16")] == [4, 2]
    assert BasisStorage(dtype="int8").vector_bytes(n, wide) / n == pytest.approx(1 + 4 / 256, rel=1e-3)
    assert BasisStorage().vector_bytes(n, torch.float64) / n == 8


def test_a_large_entry_takes_no_digits_from_distant_ones():
    space = space_of(dtype="int8", shapes=[(1024,)])
    v = [torch.full((1024,), 1e-3)]
    v[0][0] = 1e3
    basis = space.basis()
    basis.append(v)
    assert (basis.vector(0)[0][256:] - 1e-3).abs().max() < 1e-3 * 2**-7


def test_a_basis_on_disk_leaves_nothing_behind(tmp_path):
    basis, given = filled(space_of("disk", folder=tmp_path), 20)
    assert list(tmp_path.iterdir()) == []  # its name is gone at once: a run that is killed leaves nothing either
    assert (flat(basis.vector(19)) == given[:, 19]).all()
    del basis
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_or_folder_is_one_line():
    with pytest.raises(DoesNotFitError, match=r"estimator.basis: .* cannot be put on disk .*; set TMPDIR"):
        filled(space_of("disk", folder=Path(tempfile.gettempdir()) / "no such folder"), 1)


class Scaled:
    """Outliers on random directions and a bulk of diag entries, in float32: H = U diag(o) U^T + P D P."""

    def __init__(self, space, outliers):
        self.space, self.num_matvecs = space, 0
        self._outliers = outliers
        self._bulk = [1e-2 * p for p in space.random("gaussian", seed=11, index=0)]
        self._u = ParameterSpace.basis(space, exact=True)
        for i in range(len(outliers)):
            v = space.random("gaussian", seed=12, index=i)
            for _ in range(2):
                self._u.subtract(self._u.inner(v), v)
            space.scale(1 / space.norm(v), v)
            self._u.append(v)

    def matvec(self, v):
        self.num_matvecs += 1
        inside = self._u.inner(v)
        w = self.space.copy(v)
        self._u.subtract(inside, w)
        w = [d * x for d, x in zip(self._bulk, w, strict=True)]
        self._u.subtract(self._u.inner(w), w)
        self._u.subtract(-self._outliers * inside, w)
        return w

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


OUTLIERS = np.concatenate([500 * np.arange(1, 13) ** -1.2, [-50.0, -28, -19, -12]])


# Rounding errors are nearly orthogonal to everything, at a level of 2^-9 / sqrt(n) for bfloat16: here n is 3e4, and
# the bulk's eigenvectors are single entries, for which the digits do least.
@pytest.mark.parametrize(
    ("dtype", "orthogonality", "value"), [("float32", 1e-6, 1e-6), ("bfloat16", 2e-4, 1e-4), ("int8", 8e-4, 4e-4)]
)
def test_ritz_values_from_a_rounded_basis(dtype, orthogonality, value):
    space = space_of(dtype=dtype)
    operator = Scaled(space, OUTLIERS)
    state = LanczosState.start(space, space.random("gaussian", seed=0, index=0), reorthogonalise=True)
    for _ in range(20):
        state.expand(operator)
    assert state.orthogonality_loss() < orthogonality
    ritz, truth = state.ritz().values, np.sort(OUTLIERS)
    assert ritz[-8:] == pytest.approx(truth[-8:], rel=value)
    assert ritz[:3] == pytest.approx(truth[:3], rel=value)


@pytest.mark.parametrize("krylov_dim", [None, 20])
@pytest.mark.parametrize("place", ["device", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_certified_pairs_have_no_rounding_of_the_basis_in_them(dtype, place, krylov_dim):
    space = space_of(place, dtype)
    operator = Scaled(space, OUTLIERS)
    result = topk(
        operator,
        k=4,
        which="both",
        max_steps=60,
        tolerance=3e-3 if dtype == "int8" else 1e-3,
        seed=0,
        on_event=ignore,
        krylov_dim=krylov_dim,
    )
    assert all(p.converged for p in result.pairs)
    assert result.completeness.complete
    truth = np.sort(OUTLIERS)
    expected = np.concatenate([truth[::-1][:4], truth[:4][::-1]])
    assert [p.value for p in result.pairs] == pytest.approx(expected.tolist(), rel=3e-6)
    refined = 0 if dtype == "float32" else 2 * (4 + 2)
    assert operator.num_matvecs == result.num_steps + 2 * (4 + 2) + refined + result.completeness.num_matvecs


def test_a_restart_holds_no_second_basis(monkeypatch):
    # What is made beside the rows does not grow with the parameters.
    largest = []
    join = torch.cat

    def watched(parts):
        largest.append(sum(p.numel() for p in parts))
        return join(parts)

    monkeypatch.setattr(torch, "cat", watched)
    for numel in (1 << 20, 1 << 21):
        basis, _ = filled_zeros(space_of(shapes=[(numel,)]), 20)
        largest.clear()
        basis.recombine(np.eye(20)[:, :9])
        assert max(largest) <= 20 << 17
        assert len(basis._blocks) == 1


def filled_zeros(space, count):
    basis = space.basis()
    for _ in range(count):
        basis.append(space.zeros())
    return basis, None
