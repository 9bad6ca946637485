"""Vectors over parameters: no part meets another, and numbers depend on their place alone."""

import numpy as np
import pytest
import torch

from hesscli.linalg.krylov.lanczos import LanczosState
from hesscli.linalg.random import element_key, gaussian, rademacher
from hesscli.linalg.space import ParameterSpace

CPU = torch.device("cpu")


class Placed(torch.Tensor):
    """A tensor with a place; any operation on tensors of two places fails, as it does between two devices."""

    place = None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        places = set(_places(args))
        if len(places) > 1:
            raise AssertionError(f"{function.__name__} joined the places {sorted(places)}")
        out = super().__torch_function__(function, types, args, kwargs or {})
        for tensor in [out] if isinstance(out, Placed) else out if isinstance(out, (list, tuple)) else []:
            if isinstance(tensor, Placed) and places:
                tensor.place = next(iter(places))
        return out


def _places(args):
    for arg in args:
        if isinstance(arg, Placed) and arg.place is not None:
            with torch._C.DisableTorchFunctionSubclass():
                scalar = arg.dim() == 0  # scalars may meet on one device
            if not scalar:
                yield arg.place
        elif isinstance(arg, (list, tuple)):
            yield from _places(arg)


def placed(tensor, place):
    out = tensor.as_subclass(Placed)
    out.place = place
    return out


class PlacedOperator:
    """Multiplies each part by a diagonal, on the part's own place."""

    def __init__(self, space, diagonals):
        self.space, self._diagonals = space, diagonals

    def matvec(self, v):
        return [d * x for d, x in zip(self._diagonals, v, strict=True)]

    def matvecs(self, vs):
        return [self.matvec(v) for v in vs]


def test_a_whole_krylov_run_never_joins_two_places():
    shapes = [(3, 4), (7,), (1,), (20, 10)]
    parameters = [torch.zeros(s) for s in shapes]
    space = ParameterSpace([f"p{i}" for i in range(4)], parameters)
    generator = torch.Generator().manual_seed(0)
    diagonals = [placed(torch.randn(s, generator=generator), i) for i, s in enumerate(shapes)]
    start = [placed(x, i) for i, x in enumerate(space.random("gaussian", seed=0, index=0))]
    state = LanczosState.start(space, start, reorthogonalise=True)
    for _ in range(30):
        state.expand(PlacedOperator(space, diagonals))
    top = state.basis.combine(state.ritz().vectors[:, -1:])[0]
    truth = max(float(d.max()) for d in diagonals)
    assert state.ritz().values[-1] == pytest.approx(truth, rel=1e-4)
    assert space.norm(top) == pytest.approx(1, abs=1e-5)


def test_the_placed_tensor_does_refuse():
    with pytest.raises(AssertionError, match="joined"):
        placed(torch.ones(2), 0) + placed(torch.ones(2), 1)


def test_sums_over_many_parameters_are_taken_in_float64():
    space = ParameterSpace(["a", "b"], [torch.zeros(1 << 20), torch.zeros(3)])
    v = [torch.full((1 << 20,), 0.1), torch.tensor([1e4, 0.0, 0.0])]
    exact = (1 << 20) * float(torch.tensor(0.1)) ** 2 + 1e8
    assert space.inner(v, v) == pytest.approx(exact, rel=1e-7)


def test_basis_agrees_with_numpy_beyond_one_block_of_rows():
    space = ParameterSpace(["a", "b"], [torch.zeros(5, 6), torch.zeros(11)])
    basis = space.basis()
    vectors = [space.random("gaussian", seed=2, index=i) for i in range(37)]
    for v in vectors:
        basis.append(v)
    matrix = np.array([np.concatenate([p.numpy().ravel() for p in v]) for v in vectors]).T
    w = space.random("gaussian", seed=3, index=0)
    flat = np.concatenate([p.numpy().ravel() for p in w])
    assert basis.inner(w) == pytest.approx(matrix.T @ flat, rel=1e-5, abs=1e-5)
    c = np.random.default_rng(0).standard_normal((37, 2))
    for column, v in zip(c.T, basis.combine(c), strict=True):
        assert np.concatenate([p.numpy().ravel() for p in v]) == pytest.approx(matrix @ column, rel=1e-4, abs=1e-4)
    basis.subtract(c[:, 0], w)
    assert np.concatenate([p.numpy().ravel() for p in w]) == pytest.approx(flat - matrix @ c[:, 0], rel=1e-4, abs=1e-4)


def test_vectors_are_wide_where_parameters_are_narrow():
    assert ParameterSpace(["a"], [torch.zeros(2, dtype=torch.bfloat16)]).dtype == torch.float32
    assert ParameterSpace(["a"], [torch.zeros(2, dtype=torch.float64)]).dtype == torch.float64


@pytest.mark.parametrize("draw", [rademacher, gaussian])
def test_a_shard_draws_its_own_part_of_the_same_vector(draw):
    key = element_key(0, 3, "layer.weight")
    whole = draw(key, 0, 1000, device=CPU)
    assert torch.equal(whole[137:600], draw(key, 137, 463, device=CPU))
    assert not torch.equal(whole[:463], draw(element_key(0, 4, "layer.weight"), 0, 463, device=CPU))


def test_random_vectors_have_mean_zero_variance_one_and_no_memory():
    n = 1 << 18
    for draw, fourth in ((rademacher, 1.0), (gaussian, 3.0)):
        x = draw(element_key(1, 0, "w"), 0, n, device=CPU).double()
        y = draw(element_key(1, 1, "w"), 0, n, device=CPU).double()
        bound = 4.5 / n**0.5  # 4.5 standard errors
        assert abs(float(x.mean())) < bound
        assert abs(float((x * y).mean())) < bound
        assert abs(float((x[1:] * x[:-1]).mean())) < bound
        assert float((x**2).mean()) == pytest.approx(1, abs=bound * 1.5)
        assert float((x**4).mean()) == pytest.approx(fourth, abs=bound * 10 + 1e-12)


def test_random_numbers_stay_what_they_were():
    # A change here changes every published figure that names a seed.
    assert rademacher(element_key(0, 0, "w"), 0, 12, device=CPU).tolist() == GOLDEN_SIGNS
    assert gaussian(element_key(0, 0, "w"), 0, 3, device=CPU).tolist() == pytest.approx(GOLDEN_NORMALS, rel=1e-12)


GOLDEN_SIGNS = [1, 1, -1, -1, 1, -1, 1, -1, -1, 1, 1, 1]
GOLDEN_NORMALS = [1.0217206799044674, -0.6896346429989421, 0.8127462343377259]


def test_restriction_keeps_a_block_and_nothing_else():
    space = ParameterSpace(["a", "b", "c"], [torch.zeros(2), torch.zeros(3), torch.zeros(1)])
    v = space.random("rademacher", seed=0, index=0)
    masked = space.restrict(v, {1})
    assert torch.equal(masked[1], v[1])
    assert not masked[0].any()
    assert not masked[2].any()
    rest = space.restrict(v, {0, 2})
    space.axpy(1.0, masked, rest)
    assert all(torch.equal(a, b) for a, b in zip(rest, v, strict=True))


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-16, 1.0, 1e16, 1e25])
def test_a_product_that_is_small_or_large_for_its_numbers_has_its_length(size):
    space = ParameterSpace(["a", "b"], [torch.empty(300), torch.empty(40, 20)])
    v = [size * part for part in space.random("gaussian", seed=0, index=0)]
    wide = np.concatenate([part.double().numpy().ravel() for part in v])
    assert space.norm(v) == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    assert space.inners(v, v) == pytest.approx([wide[:300] @ wide[:300], wide[300:] @ wide[300:]], rel=1e-6, abs=0)
    assert space.norm(space.zeros()) == 0
    assert np.isnan(space.norm([v[0] * float("nan"), v[1]]))
