"""Weights in a wider dtype for a while: what a product in wider arithmetic computes with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


def widened(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers in `dtype`; x itself where it is as wide, or holds integers."""
    return x.to(torch.promote_types(x.dtype, dtype)) if x.is_floating_point() else x


@contextmanager
def held_in(dtype: torch.dtype, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """For the block these parameters and buffers hold copies in `dtype`; after it they hold what they held."""
    kept = [(x, x.data) for x in tensors]
    try:
        for x, data in kept:
            x.data = widened(data, dtype)
        yield
    finally:
        for x, data in kept:
            x.data = data
