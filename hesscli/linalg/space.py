"""Vectors over a model's parameters, one part per parameter, each where its parameter lives.

No flat vector of the model ever exists: algorithms speak to a `Space` only, and every sum over parameters
is taken on the host in float64.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch

from hesscli.linalg.basis import Basis, ParameterBasis, to_host
from hesscli.linalg.random import element_key, gaussian, rademacher
from hesscli.linalg.storage import BasisStorage

V = TypeVar("V")
ParameterVector = list[torch.Tensor]
Distribution = Literal["rademacher", "gaussian"]


class Space(Protocol[V]):
    """What an algorithm may ask of vectors. Nothing else of them is known to it."""

    @property
    def dimension(self) -> int:
        """Number of entries of a vector."""

    @property
    def epsilon(self) -> float:
        """Spacing of the vectors' floating-point numbers at 1."""

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


class ParameterSpace:
    """The space of the selected parameters: names, shapes, devices and the dtype of vectors.

    Vectors are float32 where parameters are narrower: sums and Krylov recurrences do not survive bfloat16.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[torch.Tensor]) -> None:
        self.names = tuple(names)
        self.shapes = tuple(tuple(p.shape) for p in parameters)
        self.devices = tuple(p.device for p in parameters)
        self.numels = tuple(p.numel() for p in parameters)
        wide = any(p.dtype == torch.float64 for p in parameters)
        self.dtype = torch.float64 if wide else torch.float32
        self.storage = BasisStorage()
        """Where and how bases keep their vectors; what is set here holds for bases made after."""

    @property
    def dimension(self) -> int:
        """Number of selected parameters; a tied one counts once."""
        return sum(self.numels)

    @property
    def epsilon(self) -> float:
        """Spacing of the vectors' floating-point numbers at 1."""
        return float(torch.finfo(self.dtype).eps)

    def vector_bytes(self) -> int:
        """Memory of one vector."""
        return self.dimension * (8 if self.dtype == torch.float64 else 4)

    def zeros(self) -> ParameterVector:
        """A vector of zeros, each part where its parameter lives."""
        return [torch.zeros(s, dtype=self.dtype, device=d) for s, d in zip(self.shapes, self.devices, strict=True)]

    def random(self, distribution: Distribution, *, seed: int, index: int) -> ParameterVector:
        """Independent entries of mean 0 and variance 1.

        An entry depends on (seed, index, parameter name, element index) alone, so every placement draws
        the same vector and a resumed run draws it again.
        """
        draw = rademacher if distribution == "rademacher" else gaussian
        return [
            draw(element_key(seed, index, name), 0, numel, device=d).to(self.dtype).reshape(s)
            for name, numel, s, d in zip(self.names, self.numels, self.shapes, self.devices, strict=True)
        ]

    def copy(self, v: ParameterVector) -> ParameterVector:
        """A vector with the same entries and storage of its own."""
        return [part.clone() for part in v]

    def inners(self, u: ParameterVector, v: ParameterVector) -> np.ndarray:
        """The inner product parameter by parameter, (parameters,) float64; one transfer per device."""
        # Products are rounded in the vectors' dtype, sums are not: the error stays near eps * |u||v| / sqrt(n).
        return to_host([(a * b).sum(dtype=torch.float64) for a, b in zip(u, v, strict=True)])

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
        for part in x:
            part.mul_(alpha)

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
        return ParameterBasis(self.numels, self.shapes, self.devices, self.dtype, storage)
