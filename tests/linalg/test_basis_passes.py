"""A basis's two operations in one pass, and the memory that it takes."""

import numpy as np
import pytest
import torch
from live_bytes import peak_of

from hesscli.linalg import basis as module
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.storage import BasisStorage

SHAPES = [(40, 33), (1,), (700,)]


def filled(dtype, length, capacity=None):
    space = ParameterSpace([str(i) for i in range(len(SHAPES))], [torch.empty(s) for s in SHAPES])
    space.storage = BasisStorage(dtype=dtype, capacity=capacity)
    basis = space.basis()
    for i in range(length):
        v = space.random("gaussian", seed=0, index=i)
        space.scale(1.0 / space.norm(v), v)
        basis.append(v)
    return space, basis


@pytest.mark.parametrize("cached", [1, 1 << 12, 1 << 20])
@pytest.mark.parametrize("length", [0, 1, 16, 37])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_one_pass_does_what_two_do(dtype, length, cached, monkeypatch):
    monkeypatch.setattr(module, "_CACHED", cached)
    space, basis = filled(dtype, length)
    v = space.random("gaussian", seed=1, index=0)
    together, apart = space.copy(v), space.copy(v)
    coefficients = basis.inner(v)
    found = basis.subtract_then_inner(coefficients, together)
    basis.subtract(coefficients, apart)
    assert found.shape == (length,)
    assert found == pytest.approx(basis.inner(apart), abs=1e-6 * space.norm(v))
    space.axpy(-1.0, apart, together)
    assert space.norm(together) <= 1e-6 * space.norm(v)
    dense = np.array([np.concatenate([p.numpy().ravel() for p in basis.vector(i)]) for i in range(length)], float)
    w = np.concatenate([p.numpy().ravel() for p in apart]).astype(float)
    assert found == pytest.approx(dense @ w if length else np.zeros(0), abs=1e-5)


@pytest.mark.parametrize(("length", "capacity", "rows"), [(20, 20, 20), (20, None, 32), (5, 6, 6), (22, 20, 36)])
def test_a_basis_takes_no_more_than_its_capacity_until_it_goes_beyond(length, capacity, rows):
    whole, held = filled("float32", length)[1], []
    space, _ = filled("float32", 0, capacity)
    vectors = [whole.vector(i) for i in range(length)]

    def work():
        held.append(space.basis())
        for v in vectors:
            held[0].append(v)

    # What is appended is counted too, as it is looked at in there.
    assert peak_of(work) / space.vector_bytes() - length == pytest.approx(rows, abs=1.1)
    for v in vectors:
        assert (held[0].inner(v) == whole.inner(v)).all()
