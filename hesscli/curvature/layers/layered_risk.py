"""A risk whose weights are not all there at once: loss and gradient one layer at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn

from hesscli.curvature.layers.push_layer import LayerPush
from hesscli.curvature.layers.residence import Residence
from hesscli.curvature.layers.stack import Stack, find_stack
from hesscli.curvature.layers.sweep import Sweep
from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.data.slice import Batch
from hesscli.linalg.space import ParameterSpace, ParameterVector

Watch = Callable[[Batch], AbstractContextManager[object]]


class FetchedResidence(Residence, Protocol):
    """A residence whose layers fetch their weights themselves in a pass without a gradient."""

    @property
    def space(self) -> ParameterSpace:
        """Vectors that lie where this residence reads parts from and adds results to."""

    @property
    def vectors_elsewhere(self) -> bool:
        """Whether an accelerator computes and vectors lie on the host."""

    def displaced(self, v: ParameterVector, alpha: float) -> AbstractContextManager[None]:
        """For the block weights are theta + alpha v; nothing is written. After it they are the same bit for bit."""

    def changed(
        self, change: Callable[[int, torch.Tensor, slice | None], torch.Tensor]
    ) -> AbstractContextManager[None]:
        """For the block weights are what `change` makes of a place, the weight there, and its rows if not all."""

    def widened(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """For the block weights narrower than `dtype` are in it."""

    def weight(self, place: int) -> torch.Tensor:
        """A selected weight, whole."""

    def weights_norm(self) -> float:
        """The Euclidean length of the selected weights."""


class LayeredRisk(EmpiricalRisk):
    """The risk of a model whose weights come layer by layer; a pass with a graph through the whole model has none.

    Loss, gradient and displaced ones hold the weights of one layer, and of the next one that is being fetched. A
    gradient costs 4 units in place of 3: each layer is made again.

    Raises UnknownStructureError where the model cannot be taken layer by layer and a gradient is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        names: Sequence[str],
        parameters: Sequence[nn.Parameter],
        input_device: torch.device,
        residence: FetchedResidence,
    ) -> None:
        super().__init__(model, batches, names=names, parameters=parameters, input_device=input_device)
        self.space, self.residence = residence.space, residence
        self._fetched = residence

    @property
    def stack(self) -> Stack:
        """The layers, found by a run of one short row. Raises UnknownStructureError."""
        return self._stack or find_stack(self.first_row(most=LOOKED_AT))

    @property
    def vectors_elsewhere(self) -> bool:
        """Whether parts of vectors are brought to a device of less memory than where they lie."""
        return self._fetched.vectors_elsewhere

    def gradient(self) -> ParameterVector:
        """The gradient of the mean loss by a sweep without tangents: 4 units, one vector."""
        total = self.space.zeros()
        with twice_differentiable_attention():
            self._sweep(total)
        return total

    def gradient_along(self, v: ParameterVector, alpha: float, watch: Watch = nullcontext) -> ParameterVector:
        """The gradient at theta + alpha v, with each batch's part of it inside of `watch(batch)`."""
        total = self.space.zeros()
        with self._fetched.displaced(v, alpha):
            self._sweep(total, watch)
        return total

    def loss_along(self, u: ParameterVector, step: float) -> float:
        """The mean loss at theta + step u: one forward pass."""
        with self._fetched.displaced(u, step):
            return self.loss().value

    def terms(self, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The loss at each position of a batch; each of `weights` is asked for when its layer runs."""
        if not weights:
            return super().terms(batch)

        def given(place: int, weight: torch.Tensor, rows: slice | None) -> torch.Tensor:
            found = weights.get(self.space.names[place])
            if found is None:
                return weight
            return (found if rows is None else found[rows]).to(weight.device)

        with self._fetched.changed(given):
            return super().terms(batch)

    def widened(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """For the block weights narrower than `dtype` are in it, each layer's as it is fetched."""
        return self._fetched.widened(dtype)

    def weight(self, place: int) -> torch.Tensor:
        """A selected weight: one read."""
        return self._fetched.weight(place)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The selected weights by name, each read when it is asked for and not kept."""
        return _Unread(self)

    def weights_norm(self) -> float:
        """The Euclidean length of the selected weights: one pass over them."""
        return self._fetched.weights_norm()

    def _sweep(self, total: ParameterVector, watch: Watch = nullcontext) -> None:
        pushes = LayerPush(), LayerPush()
        with self.residence.outside() as outside:
            sweep = Sweep(self, self.stack, None, pushes, [], [], outside=outside, gradient=total)
            for batch in self.batches:
                if batch.num_terms:
                    with watch(batch):
                        sweep.add(batch)
        self.space.scale(1.0 / self.num_terms, total)


class _Unread(Mapping[str, torch.Tensor]):
    def __init__(self, risk: LayeredRisk) -> None:
        self._risk = risk
        self._places = {name: i for i, name in enumerate(risk.space.names)}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._risk.weight(self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
