"""What a model weighs, by block, by layer, and by what a token goes through."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.selection import Block, partition

_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of weights, and numbers of parameters."""

    weights: int
    """Of all parameters and buffers; a tied parameter counts once."""
    num_layers: int
    largest_layer: int
    """Weights of the largest layer."""
    outside: int
    """Weights outside of layers."""
    active: int
    """Parameters that a token goes through."""


def sizes_of(model: nn.Module, *, num_experts: int, experts_per_token: int) -> Sizes:
    """Count a model's parts; layers are those that hess takes one at a time."""
    layers = list(outermost_layers(model).values())
    by_layer = [list(layer.parameters()) for layer in layers]
    inside = {id(p) for parameters in by_layer for p in parameters}
    outside = [p for p in model.parameters() if id(p) not in inside]
    buffers = sum(b.nbytes for b in model.buffers())
    idle = sum(p.numel() for name, p in model.named_parameters() if _EXPERTS.search(name))
    everything = sum(p.numel() for p in model.parameters())
    return Sizes(
        weights=sum(p.nbytes for p in model.parameters()) + buffers,
        num_layers=len(layers),
        largest_layer=max((_bytes(parameters) for parameters in by_layer), default=0),
        outside=_bytes(outside) + buffers,
        active=everything - idle * (num_experts - experts_per_token) // max(1, num_experts),
    )


def block_sizes(names: Sequence[str], numels: Sequence[int], blocks: Sequence[Block] | None = None) -> Counter[str]:
    """Parameters by block, in the blocks' order; by layer where no blocks are given."""
    sizes: Counter[str] = Counter()
    for block in blocks or partition(list(names), by="layer"):
        sizes[block.name] = sum(numels[i] for i in block.parts)
    return sizes


def _bytes(parameters: Sequence[torch.Tensor]) -> int:
    return sum(p.nbytes for p in parameters)
