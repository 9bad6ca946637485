"""Where weights are while a layer runs, and how parts of vectors come to them and go back.

A layered sweep needs the weights, the vectors and the results of one layer at a time. So it is one algorithm for
weights that all lie on devices, that lie on the host or on disk and are fetched, and that are sharded over processes
and gathered: what differs stands behind this protocol.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn

from hesscli.linalg.space import ParameterVector

Leaves = Mapping[str, tuple[int, torch.Tensor]]
"""By name: a selected parameter's place in the space, and the whole tensor that the model computes with."""


class Residence(Protocol):
    """How a sweep comes to weights and to parts of vectors. Places are those of the risk's space.

    While a context is open the modules of its part compute with whole weights, frozen ones and buffers too, on the
    device where the part runs. What it gives are the very tensors that they compute with: they require grad, and stay
    the same objects until the context closes. Derivatives with respect to them, summed over all openings of all
    parts, are those of the parameters. A parameter that is also given by `outside` is the same object in `layer`.

    A sweep opens `outside` once, and inside of it the layers one after the other: in the order of a run, then
    backwards, for each batch. Which layers it opens follows from `moving` and from the model, not from numbers.
    """

    def outside(self) -> AbstractContextManager[Leaves]:
        """What lies outside of layers (embeddings, final norm, head), by its name in the model; for a whole product."""

    def layer(self, layer: nn.Module) -> AbstractContextManager[Leaves]:
        """One layer's own, by its name within the layer."""

    def moving(self, vs: Sequence[ParameterVector]) -> list[list[bool]]:
        """For each place and vector whether the part has an entry that is not zero, anywhere."""

    def whole(self, place: int, part: torch.Tensor) -> torch.Tensor:
        """A part of a vector as the layer needs it: whole, in the weight's dtype, where the layer runs."""

    def add(self, place: int, total: torch.Tensor, product: torch.Tensor) -> None:
        """Add a whole result of one layer to the result's part."""


class Resident:
    """All weights on their devices all the time, and vectors beside them: everything is there already."""

    def __init__(self, names: Sequence[str], parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = tuple(parameters)
        self._places = {id(p): i for i, p in enumerate(parameters)}
        # All of them, not those outside of layers alone: a model may read a layer's weight from elsewhere.
        self._outside = {name: (i, p) for i, (name, p) in enumerate(zip(names, parameters, strict=True))}

    def outside(self) -> AbstractContextManager[Leaves]:
        """Every selected parameter."""
        return nullcontext(self._outside)

    def layer(self, layer: nn.Module) -> AbstractContextManager[Leaves]:
        """The selected among the layer's parameters."""
        own = {n: (self._places[id(p)], p) for n, p in layer.named_parameters() if id(p) in self._places}
        return nullcontext(own)

    def moving(self, vs: Sequence[ParameterVector]) -> list[list[bool]]:
        """By looking at each part."""
        return [[bool(v[i].any()) for v in vs] for i in range(len(self._parameters))]

    def whole(self, place: int, part: torch.Tensor) -> torch.Tensor:
        """The part itself, or a copy in the weight's dtype."""
        return part.to(self._parameters[place].device, self._parameters[place].dtype)

    def add(self, place: int, total: torch.Tensor, product: torch.Tensor) -> None:  # noqa: ARG002
        """Add in place."""
        total.add_(product.to(total.device, total.dtype))
