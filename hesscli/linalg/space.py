"""Vectors over a model's parameters, one part per parameter, each where its parameter lives.

No flat vector of the model ever exists: algorithms speak to a `Space` only, and every sum over parameters
is taken on the host in float64.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch

from hesscli.distributed import ALONE, Ranks
from hesscli.linalg.basis import Basis, ParameterBasis, to_host
from hesscli.linalg.random import element_key, gaussian, rademacher
from hesscli.linalg.storage import BasisStorage

V = TypeVar("V")
ParameterVector = list[torch.Tensor]
# Of the smallest normal number an entry: a sum of products below it has lost digits to those that are denormal.
_VANISHING = 1e6
Distribution = Literal["rademacher", "gaussian"]


class Space(Protocol[V]):
    """What an algorithm may ask of vectors. Nothing else of them is known to it."""

    @property
    def dimension(self) -> int:
        """Number of entries of a vector."""

    @property
    def epsilon(self) -> float:
        """Spacing at 1 of the floating-point numbers that products are made in."""

    def zeros(self) -> V:
        """A vector of zeros."""

    def random(self, distribution: Distribution, *, seed: int, index: int) -> V:
        """Independent entries of mean 0 and variance 1, the same wherever the parts are placed."""

    def copy(self, v: V) -> V:
        """A vector with the same entries and storage of its own."""

    def inners(self, u: V, v: V) -> np.ndarray:
        """The inner product part by part, (parts,) float64."""

    def inner(self, u: V, v: V) -> float:
        """The inner product."""

    def norm(self, v: V) -> float:
        """The Euclidean norm."""

    def axpy(self, alpha: float, x: V, y: V) -> None:
        """Put `y + alpha x` into y."""

    def scale(self, alpha: float, x: V) -> None:
        """Put `alpha x` into x."""

    def scale_parts(self, alphas: np.ndarray, x: V) -> None:
        """Put `alpha_i x_i` into each part of x; alphas is (parts,), in the order of `inners`."""

    def multiply(self, u: V, v: V) -> V:
        """The products entry by entry."""

    def restrict(self, v: V, parts: Collection[int]) -> V:
        """A copy of v that is zero outside the named parts."""

    def basis(self, *, exact: bool = False) -> "Basis[V]":
        """An empty, append-only set of vectors; `exact` keeps them in the vectors' own dtype whatever else is set."""


def factors(alpha: float, dtype: torch.dtype) -> tuple[float, ...]:
    """Numbers of this dtype whose product is alpha: two where it alone is beyond them, as 1e39 is in float32.

    The length of a vector of denormal numbers has such an inverse.
    """
    info = torch.finfo(dtype)
    if alpha == 0 or info.tiny <= abs(alpha) <= info.max or not np.isfinite(alpha):
        return (alpha,)
    first = 2.0 ** round(float(np.log2(abs(alpha))) / 2)
    return first, alpha / first


@dataclass(frozen=True, slots=True)
class Shards:
    """The processes that hold a space's vectors together, each its rows of every part, and the parts' whole shapes."""

    ranks: Ranks
    shapes: Sequence[tuple[int, ...]]


class ParameterSpace:
    """The space of the selected parameters: names, shapes, devices and the dtype of vectors.

    Vectors are float32 where parameters are narrower: sums and Krylov recurrences do not survive bfloat16.
    With `shards` the parameters given are this rank's rows, which may be none, and so are the parts of vectors; sums
    are over all ranks, in one collective each. `shapes` and `numels` are the whole parameters' all the same.
    """

    def __init__(
        self, names: Sequence[str], parameters: Sequence[torch.Tensor], *, shards: Shards | None = None
    ) -> None:
        self.names = tuple(names)
        self.local_shapes = tuple(tuple(p.shape) for p in parameters)
        self.local_numels = tuple(p.numel() for p in parameters)
        self.shapes = self.local_shapes if shards is None else tuple(shards.shapes)
        self.numels = tuple(prod(shape) for shape in self.shapes)
        self.ranks = ALONE if shards is None else shards.ranks
        self._starts = tuple(self.ranks.rows(s[0]).start * prod(s[1:]) if s else 0 for s in self.shapes)
        self.devices = tuple(p.device for p in parameters)
        wide = any(p.dtype == torch.float64 for p in parameters)
        self.dtype = torch.float64 if wide else torch.float32
        self.epsilon = float(torch.finfo(self.dtype).eps)
        """Spacing of the vectors' numbers at 1, or of narrower ones that products of wide vectors go through: whoever
        finds that they do sets it."""
        self.storage = BasisStorage()
        """Where and how bases keep their vectors; what is set here holds for bases made after."""

    @property
    def dimension(self) -> int:
        """Number of selected parameters; a tied one counts once."""
        return sum(self.numels)

    def vector_bytes(self) -> int:
        """Memory of one vector, of this rank's part of it where it is sharded."""
        return sum(self.local_numels) * (8 if self.dtype == torch.float64 else 4)

    def zeros(self) -> ParameterVector:
        """A vector of zeros, each part where its parameter lives."""
        places = zip(self.local_shapes, self.devices, strict=True)
        return [torch.zeros(s, dtype=self.dtype, device=d) for s, d in places]

    def random(self, distribution: Distribution, *, seed: int, index: int) -> ParameterVector:
        """Independent entries of mean 0 and variance 1.

        An entry depends on (seed, index, parameter name, element index) alone, so every placement draws
        the same vector and a resumed run draws it again.
        """
        draw = rademacher if distribution == "rademacher" else gaussian
        places = zip(self.names, self._starts, self.local_numels, self.local_shapes, self.devices, strict=True)
        return [
            draw(element_key(seed, index, name), start, numel, device=d).to(self.dtype).reshape(s)
            for name, start, numel, s, d in places
        ]

    def copy(self, v: ParameterVector) -> ParameterVector:
        """A vector with the same entries and storage of its own."""
        return [part.clone() for part in v]

    def inners(self, u: ParameterVector, v: ParameterVector) -> np.ndarray:
        """The inner product parameter by parameter, (parameters,) float64; one transfer per device, one collective."""
        # Products are rounded in the vectors' dtype, sums are not: the error stays near eps * |u||v| / sqrt(n).
        found = self.ranks.sum(to_host([(a * b).sum(dtype=torch.float64) for a, b in zip(u, v, strict=True)]))
        if self.holds(found):
            return found
        return self.ranks.sum(to_host([(a.double() * b.double()).sum() for a, b in zip(u, v, strict=True)]))

    def holds(self, sums: np.ndarray) -> bool:
        """Whether sums of products of entries, taken in the vectors' dtype, have kept their digits.

        Entries whose products are too small or too large for float32 would be a zero or an infinite vector.
        """
        least = _VANISHING * self.dimension * torch.finfo(self.dtype).tiny
        return self.dtype == torch.float64 or least <= abs(float(sums.sum())) < float("inf")

    def inner(self, u: ParameterVector, v: ParameterVector) -> float:
        """The inner product over all parameters."""
        return float(self.inners(u, v).sum())

    def norm(self, v: ParameterVector) -> float:
        """The Euclidean norm over all parameters."""
        return float(np.sqrt(self.inner(v, v)))

    def axpy(self, alpha: float, x: ParameterVector, y: ParameterVector) -> None:
        """Put `y + alpha x` into y."""
        for a, b in zip(x, y, strict=True):
            b.add_(a, alpha=alpha)

    def scale(self, alpha: float, x: ParameterVector) -> None:
        """Put `alpha x` into x."""
        for factor in factors(alpha, self.dtype):
            for part in x:
                part.mul_(factor)

    def scale_parts(self, alphas: np.ndarray, x: ParameterVector) -> None:
        """Put `alpha_i x_i` into each parameter's part of x."""
        for alpha, part in zip(alphas, x, strict=True):
            part.mul_(float(alpha))

    def multiply(self, u: ParameterVector, v: ParameterVector) -> ParameterVector:
        """The products entry by entry."""
        return [a * b for a, b in zip(u, v, strict=True)]

    def restrict(self, v: ParameterVector, parts: Collection[int]) -> ParameterVector:
        """A copy of v that is zero outside the parameters with these indices."""
        return [part.clone() if i in parts else torch.zeros_like(part) for i, part in enumerate(v)]

    def basis(self, *, exact: bool = False) -> "ParameterBasis":
        """An empty basis, kept as `storage` says; `exact` keeps the place and not the rounding."""
        storage = replace(self.storage, dtype="float32") if exact else self.storage
        return ParameterBasis(
            self.local_numels, self.local_shapes, self.devices, self.dtype, storage, total=self.ranks.sum
        )

    def whole(self, i: int, part: torch.Tensor) -> torch.Tensor:
        """The i-th part of a vector with all its rows; where it is sharded, by an all-gather that all ranks join."""
        return self.ranks.whole([part], [self.shapes[i]])[0]

    def own(self, i: int, whole: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a tensor of the i-th parameter's shape: all of them where it is not sharded."""
        return whole if self.ranks.size == 1 else whole[self.ranks.rows(self.shapes[i][0])]
