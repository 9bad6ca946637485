"""Vectors in files are the vectors in memory, and hold no memory."""

import numpy as np
import psutil
import pytest
import torch

from hesscli.errors import DoesNotFitError
from hesscli.linalg.mapped import is_mapped, mapped, release
from hesscli.linalg.mapped_space import MappedSpace
from hesscli.linalg.space import ParameterSpace
from hesscli.linalg.storage import BasisStorage

SHAPES = [(3, 5), (1,), (), (7, 2, 2), (0, 4), (700, 900)]
NAMES = [f"p{i}" for i in range(len(SHAPES))]
PARAMETERS = [torch.zeros(shape) for shape in SHAPES]


@pytest.fixture
def spaces(tmp_path, monkeypatch):
    monkeypatch.setattr("hesscli.linalg.mapped_space._PIECE", 1 << 12)
    return MappedSpace(NAMES, PARAMETERS, tmp_path), ParameterSpace(NAMES, PARAMETERS)


def same(u, v):
    return all(torch.equal(a, b) for a, b in zip(u, v, strict=True))


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_random_vectors_are_the_ones_in_memory(spaces, distribution):
    on_disk, in_memory = (space.random(distribution, seed=4, index=2) for space in spaces)
    assert all(is_mapped(part) for part in on_disk if part.numel())
    assert same(on_disk, in_memory)


def test_every_verb_gives_what_it_gives_in_memory(spaces):
    results = []
    for space in spaces:
        u, v = (space.random("gaussian", seed=0, index=i) for i in range(2))
        w = space.copy(v)
        space.axpy(0.5, u, w)
        space.scale(3.0, w)
        space.scale_parts(np.arange(len(SHAPES)) - 1.5, w)
        made = [w, space.multiply(u, v), space.restrict(w, {0, 3}), space.zeros()]
        results.append((made, space.inners(u, w), space.inner(v, w), space.norm(w)))
    (disk, *numbers), (memory, *truth) = results
    assert all(same(a, b) for a, b in zip(disk, memory, strict=True))
    for a, b in zip(numbers, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_basis_of_them_is_the_basis_in_memory(spaces, dtype):
    results = []
    for space in spaces:
        space.storage = BasisStorage(dtype=dtype)
        basis = space.basis()
        for i in range(18):  # more than a block of rows
            basis.append(space.random("gaussian", seed=0, index=i))
        v = space.random("gaussian", seed=1, index=0)
        inner = basis.inner(v)
        basis.subtract(inner / 1e4, v)
        c = np.random.default_rng(0).normal(size=(18, 3))
        combined = basis.combine(c)
        basis.recombine(c)
        results.append(([v, *combined, basis.vector(2)], inner))
    (disk, inner), (memory, truth) = results
    np.testing.assert_allclose(inner, truth, rtol=1e-6, atol=1e-2)
    for u, v in zip(disk, memory, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(u, v, strict=True))


def test_what_is_let_go_of_is_not_lost(tmp_path):
    (a, b) = mapped([((1000, 7), torch.float32), ((5,), torch.float64)], tmp_path, what="x", field="f", remedy="r")
    a.normal_()
    b.fill_(2.0)
    before = a.clone()
    release(a[3:900, 2:], b)
    assert torch.equal(a, before)
    assert b.tolist() == [2.0] * 5


def test_an_ordinary_tensor_is_left_alone():
    x = torch.ones(10_000)
    release(x, x[:0])
    assert bool((x == 1).all())


@pytest.mark.skipif(not psutil.LINUX, reason="reads the resident set of this process")
def test_vectors_in_files_hold_no_memory(tmp_path):
    space = MappedSpace(["w"], [torch.empty(1).expand(4096, 8192)], tmp_path)  # 128 MiB a vector
    process = psutil.Process()
    before = process.memory_info().rss
    u, v = (space.random("rademacher", seed=0, index=i) for i in range(2))
    space.axpy(2.0, u, v)
    basis = space.basis()
    basis.append(v)
    norm = float(np.sqrt(basis.inner(v)[0]))
    assert norm == pytest.approx(space.norm(v))
    assert process.memory_info().rss - before < 96 << 20


def test_a_folder_without_room_is_one_line(tmp_path):
    space = MappedSpace(["w"], [torch.empty(1).expand(1 << 30, 1 << 20)], tmp_path)
    with pytest.raises(DoesNotFitError, match=r"model.offload_dir: 4194304.00 GiB of vector cannot be put on disk"):
        space.zeros()


def test_the_file_goes_with_its_vector(tmp_path):
    space = MappedSpace(NAMES, PARAMETERS, tmp_path)
    v = space.zeros()
    part = v[0]
    del v
    part.fill_(1.0)
    assert list(tmp_path.iterdir()) == []
    assert bool((part == 1.0).all())
