"""Whether the loss stays as it is along the finite orbit of a candidate: what is only near to a symmetry is not one."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.symmetries.axes import Changed, Tensors
from hesscli.curvature.symmetries.generator import Field, exponents, fields
from hesscli.curvature.symmetries.search import Candidate, is_factor
from hesscli.linalg.random import element_key, gaussian

# A factor of two changes no digit of a floating-point number, so the loss stays the same in every bit, whatever the
# dtype; the width is for kernels that add in another order. What is no symmetry changes terms by 1e-2 and more.
_SAME = 1e-6
_STAND_IN = 0.1  # of numbers in the place of zeros: activations are about 1, and what is no symmetry is seen
_ROUNDED = 1e-4  # in float32, where moved weights are rounded: a gain that is stored as its distance from 1, a shift


class Orbit:
    """The loss terms of one row, and of the same row with weights along an orbit.

    A factor of nothing but zeros, as a LoRA begins with, hides what it is multiplied with: random numbers stand in for
    it. What leaves the loss as it is wherever the weights are does so there too.
    """

    def __init__(self, row: EmpiricalRisk, weights: Tensors, *, seed: int) -> None:
        self._instead = _stand_ins(weights, seed=seed)
        self._row, self._weights, self._seed = row, Changed(weights, self._instead), seed
        self._still = self._terms(self._instead)

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
        moved = _Doubled(found, self._weights, self._instead)
        dtypes = {p.dtype for n, p in zip(self._row.space.names, self._row.parameters, strict=True) if n in found}
        width = max(torch.finfo(dtype).eps for dtype in dtypes)
        tolerance = _SAME if all(c.exact for c in candidates) else max(_ROUNDED, 8 * width)
        return float((self._terms(moved) - self._still).abs().max()) <= tolerance * float(self._still.abs().max())

    def _terms(self, weights: Tensors) -> torch.Tensor:
        with torch.no_grad(), twice_differentiable_attention():
            return self._row.terms(self._row.batches[0], weights)


class _Doubled(Mapping[str, torch.Tensor]):
    """Weights along an orbit, each made when it is asked for."""

    def __init__(self, moved: Mapping[str, Field], weights: Tensors, instead: Tensors) -> None:
        self._moved, self._weights, self._names = moved, weights, dict.fromkeys([*moved, *instead])

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        weight = self._weights[name]
        return self._moved[name].doubled(weight) if name in self._moved else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _stand_ins(weights: Tensors, *, seed: int) -> dict[str, torch.Tensor]:
    """Random numbers for each factor of a low rank that is zero."""
    found = {}
    for number, name in enumerate(filter(is_factor, weights)):
        weight = weights[name]
        if not bool(weight.any()):
            drawn = gaussian(element_key(seed, number, name), 0, weight.numel(), device=weight.device)
            found[name] = (_STAND_IN * drawn).reshape(weight.shape).to(weight.dtype)
    return found
