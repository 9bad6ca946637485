"""The axes of a model's weights, layer by layer, and what stands along them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hesscli.linalg.mapped import release

_LAYER = re.compile(r"(.*\.\d+\.)")  # greedy: up to the last number in a name

Shapes = Mapping[str, torch.Size]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Axis:
    """The indices along some dimensions of one weight, and of the bias that is added to what they write.

    Names are those after the prefix of a layer.
    """

    weight: str
    dims: tuple[int, ...]
    bias: str | None = None
    offset: float = 0.0
    """What the model adds to the weight before it uses it: 1 for a gain that is stored as its distance from 1."""

    def size(self, shapes: Shapes) -> int:
        """The number of indices."""
        return torch.Size(shapes[self.weight][d] for d in self.dims).numel()

    def inner(self, prefix: str, left: Tensors, right: Tensors) -> torch.Tensor:
        """The inner product of two sets of tensors at each index, (size,) float64, one pass over both."""
        a, b = left[prefix + self.weight], right[prefix + self.weight]
        others = [d for d in range(a.dim()) if d not in self.dims]
        product = a.to(b.dtype) * b
        # Summed in the gradient's dtype: in float64 the search takes 2.5 times as long, and the loss decides anyway.
        total = (product.sum(dim=others) if others else product).double().flatten()
        release(a, b)
        if self.bias is not None:
            total = total + (left[prefix + self.bias].double() * right[prefix + self.bias].double()).flatten()
        return total.cpu()


@dataclass(frozen=True, slots=True)
class Axes:
    """What a layer's weights write to, what they read from, and the gains that scale channel by channel."""

    writes: tuple[Axis, ...]
    reads: tuple[Axis, ...]
    gains: tuple[Axis, ...]


def as_used(axes: Sequence[Axis], prefix: str, weights: Tensors) -> Tensors:
    """The weights as the model uses them, with the offsets of these axes."""
    moved = {prefix + axis.weight: axis.offset for axis in axes if axis.offset}
    return Changed(weights, {name: weights[name] + offset for name, offset in moved.items()}) if moved else weights


class Changed(Mapping[str, torch.Tensor]):
    """Tensors, some of them others; one that is not asked for is not read."""

    def __init__(self, tensors: Tensors, others: Tensors) -> None:
        self._tensors, self._others = tensors, others

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._others[name] if name in self._others else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def layers(shapes: Shapes) -> dict[tuple[tuple[str, torch.Size], ...], list[str]]:
    """Layers with the same weights, by their names and shapes within a layer -> the prefixes of the layers.

    Weights with no number in their names, as embeddings and heads, are a layer with an empty prefix.
    """
    within: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, shape in shapes.items():
        found = _LAYER.match(name)
        prefix = found.group(1) if found else ""
        within.setdefault(prefix, []).append((name[len(prefix) :], shape))
    alike: dict[tuple[tuple[str, torch.Size], ...], list[str]] = {}
    for prefix, weights in within.items():
        alike.setdefault(tuple(weights), []).append(prefix)
    return alike


def axes_of(model: nn.Module, prefix: str, shapes: Shapes) -> Axes:
    """The axes of one layer's weights, `shapes` by name after the prefix.

    Weights of experts that are stored in one, (experts, a, b), may be either way round: both are given.
    """
    writes, reads, gains = [], [], []
    biases = {bias for name in shapes if (bias := _bias(name, shapes)) is not None}
    for name, shape in shapes.items():
        bias = _bias(name, shapes)
        if len(shape) == 2:
            turned = isinstance(model.get_submodule((prefix + name).rpartition(".")[0]), Conv1D)
            writes.append(Axis(name, (1 if turned else 0,), bias))
            reads.append(Axis(name, (0 if turned else 1,)))
        elif len(shape) == 3:
            for dim in (1, 2):
                own = bias if bias is not None and shapes[bias].numel() == shape[0] * shape[dim] else None
                writes.append(Axis(name, (0, dim), own))
                reads += [Axis(name, (0, dim)), Axis(name, (dim,))]
        elif len(shape) == 1 and name not in biases:
            gains += [Axis(name, (0,), bias, offset) for offset in (0.0, 1.0)]
    return Axes(tuple(writes), tuple(reads), tuple(gains))


def _bias(name: str, shapes: Shapes) -> str | None:
    for bias in (name.removesuffix("weight") + "bias", name + "_bias"):
        if bias != name and bias in shapes and len(shapes[bias]) == max(1, len(shapes[name]) - 1):
            return bias
    return None


def pairs(axes: Sequence[Axis], others: Sequence[Axis]) -> Iterator[tuple[Axis, Axis]]:
    """Axes of two different weights, one of each kind."""
    for a in axes:
        yield from ((a, b) for b in others if a.weight != b.weight)
