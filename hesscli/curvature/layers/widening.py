"""Weights that are narrower than float32, widened for a while: what a product in wider arithmetic computes with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


def widened(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32; x itself where it is as wide, or holds integers."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


@contextmanager
def in_float32(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """For the block these parameters and buffers hold copies in float32; after it they hold what they held."""
    kept = [(x, x.data) for x in tensors]
    try:
        for x, data in kept:
            x.data = widened(data)
        yield
    finally:
        for x, data in kept:
            x.data = data
