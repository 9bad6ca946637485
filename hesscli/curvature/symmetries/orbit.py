"""Whether the loss stays as it is along the finite orbit of a candidate: what is only near to a symmetry is not one."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries.axes import Tensors
from hesscli.curvature.symmetries.generator import Field, exponents, fields
from hesscli.curvature.symmetries.search import Candidate

# A factor of two changes no digit of a floating-point number, so the loss stays the same in every bit, whatever the
# dtype; the width is for kernels that add in another order. What is no symmetry changes terms by 1e-2 and more.
_SAME = 1e-6
_ROUNDED = 1e-4  # in float32, where moved weights are rounded: a gain that is stored as its distance from 1, a shift


class Orbit:
    """The loss terms of one row, and of the same row with weights along an orbit."""

    def __init__(self, row: EmpiricalRisk, weights: Tensors, *, seed: int) -> None:
        self._row, self._weights, self._seed = row, weights, seed
        self._still = self._terms({})

    def confirmed(self, candidates: Sequence[Sequence[Candidate]]) -> list[Candidate]:
        """Of each candidate's alternatives the first that leaves every term as it is; all at once where that works.

        Costs two forward passes of the row, and one for each alternative where not all of them pass. Holds a copy
        of the weights that are moved.
        """
        found: list[Candidate] = []
        for exact in (True, False):
            alike = [alternatives for alternatives in candidates if alternatives[0].exact is exact]
            first = [alternatives[0] for alternatives in alike]
            if self.unchanged(first):
                found += first
            else:
                tried = [next((c for c in alternatives if self.unchanged([c])), None) for alternatives in alike]
                found += [candidate for candidate in tried if candidate is not None]
        return found

    def unchanged(self, candidates: Sequence[Candidate]) -> bool:
        """Whether every term is the same with each channel's factor a power of two from 1/4 to 4."""
        if not candidates:
            return True
        found = fields(candidates, self._weights, exponents, seed=self._seed)
        moved = _Doubled(found, self._weights)
        dtypes = {p.dtype for n, p in zip(self._row.space.names, self._row.parameters, strict=True) if n in found}
        width = max(torch.finfo(dtype).eps for dtype in dtypes)
        tolerance = _SAME if all(c.exact for c in candidates) else max(_ROUNDED, 8 * width)
        return float((self._terms(moved) - self._still).abs().max()) <= tolerance * float(self._still.abs().max())

    def _terms(self, weights: Tensors) -> torch.Tensor:
        with torch.no_grad(), twice_differentiable_attention():
            return self._row.terms(self._row.batches[0], weights)


class _Doubled(Mapping[str, torch.Tensor]):
    """Weights along an orbit, each made when it is asked for."""

    def __init__(self, moved: Mapping[str, Field], weights: Tensors) -> None:
        self._moved, self._weights = moved, weights

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._moved[name].doubled(self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._moved)

    def __len__(self) -> int:
        return len(self._moved)
