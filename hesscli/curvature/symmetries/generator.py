"""The vector field of a set of symmetries on each weight, without a tensor of the weight's size."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from hesscli.curvature.symmetries.axes import Tensors, as_used
from hesscli.curvature.symmetries.search import Candidate, Scaling, Shift
from hesscli.linalg.random import element_key, gaussian

Amounts = Callable[[Scaling, str, int], torch.Tensor]
"""(scaling, prefix of a layer, key) -> an amount for each channel, (channels,)."""


@dataclass(frozen=True, slots=True)
class Field:
    """X(w) = c * (w + offset) + shift on one weight; c is a sum, its terms and shift broadcast to the weight."""

    scales: tuple[torch.Tensor, ...]
    shift: torch.Tensor | float
    offset: float

    @property
    def scale(self) -> torch.Tensor | float:
        """c, which may be of the weight's size where its terms, one for each axis, are not."""
        return sum(self.scales[1:], start=self.scales[0]) if self.scales else 0.0

    def scaled(self, w: torch.Tensor) -> torch.Tensor:
        """C (w + offset)."""
        return (w + self.offset) * self.scale

    def doubled(self, w: torch.Tensor) -> torch.Tensor:
        """The weight along the orbit: factors of 2^c, then the shift. Powers of two change no digit of it."""
        wide = torch.promote_types(w.dtype, torch.float32) if self.offset else w.dtype
        factor = torch.exp2(torch.as_tensor(self.scale)).to(w.device, wide)
        return ((w.to(wide) + self.offset) * factor - self.offset + self.shift).to(w.dtype)


def fields(candidates: Iterable[Candidate], weights: Tensors, amounts: Amounts, *, seed: int) -> dict[str, Field]:
    """The sum of the candidates' vector fields, by weight.

    The known product is linear in the field, so a sum of symmetries has the sum of their answers.
    """
    scales: dict[str, tuple[torch.Tensor, ...]] = {}
    shifts: dict[str, torch.Tensor] = {}
    offsets: dict[str, float] = {}
    for number, candidate in enumerate(candidates):
        if isinstance(candidate, Shift):
            name = candidate.axis.weight
            shifts[name] = _shift(weights[name], candidate.axis.dims, element_key(seed, number, name))
            continue
        for prefix in candidate.prefixes:
            key = element_key(seed, number, prefix + candidate.members[0].axis.weight)
            padded = torch.cat([amounts(candidate, prefix, key).float(), torch.zeros(1)])  # index -1: no channel
            for member in candidate.members:
                axis, values = member.axis, member.sign * padded[torch.from_numpy(member.channels)]
                offsets[prefix + axis.weight] = axis.offset
                for own, dims in ((axis.weight, axis.dims), (axis.bias, None)):
                    if own is None:
                        continue
                    w = weights[prefix + own]
                    shape = [n if dims is None or d in dims else 1 for d, n in enumerate(w.shape)]
                    part = values.reshape(shape).to(w.device)
                    scales[prefix + own] = (*scales.get(prefix + own, ()), part)
    names = {**scales, **shifts}
    return {n: Field(scales.get(n, ()), shifts.get(n, 0.0), offsets.get(n, 0.0)) for n in names}


def exponents(scaling: Scaling, prefix: str, key: int) -> torch.Tensor:  # noqa: ARG001
    """For an orbit: -2 to 2 at random, no two channels the same where there are at most five.

    Channels with one factor between them would pass for a symmetry of each where it is one of both.
    """
    order = gaussian(key, 0, scaling.num_channels, device=torch.device("cpu")).argsort()
    return order % 5 - 2


def weighted(weights: Tensors, gradient: Tensors) -> Amounts:
    """For a direction: normal numbers, times the gradient's length over the weight's length on each channel.

    So the known product is about as long as one with a random vector, and its error one that stands for other
    vectors too; with the same deviation everywhere it is 5 to 15 times shorter.
    """

    def amounts(scaling: Scaling, prefix: str, key: int) -> torch.Tensor:
        squares = torch.zeros(2, scaling.num_channels + 1, dtype=torch.float64)  # the last: index -1
        for member in scaling.members:
            channels, axis = torch.from_numpy(member.channels) % (scaling.num_channels + 1), member.axis
            used = as_used([axis], prefix, weights)
            squares[0].index_add_(0, channels, axis.inner(prefix, gradient, gradient))
            squares[1].index_add_(0, channels, axis.inner(prefix, used, used))
        ratio = (squares[0] / squares[1].clamp_min(torch.finfo(torch.float64).tiny)).sqrt()[:-1]
        return ratio * gaussian(key, 0, scaling.num_channels, device=torch.device("cpu"))

    return amounts


def _shift(w: torch.Tensor, dims: tuple[int, ...], key: int) -> torch.Tensor:
    """Random numbers of the size of the weight's, the same along these dimensions."""
    shape = torch.Size(1 if d in dims else n for d, n in enumerate(w.shape))
    drawn = gaussian(key, 0, shape.numel(), device=w.device).reshape(shape)
    return (drawn * w.double().square().mean().sqrt()).float()
