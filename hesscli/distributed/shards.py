"""How tensors are split by rows over processes, and laid side by side for one message."""

from collections.abc import Sequence
from math import prod

import torch

Shapes = Sequence[tuple[int, ...]]


def rows_of(length: int, rank: int, size: int) -> slice:
    """The rows of a rank where `length` of them are split in blocks of equal size."""
    block = -(-length // size)
    start = min(length, rank * block)
    return slice(start, min(length, start + block))


def packed(parts: Sequence[torch.Tensor], shapes: Shapes, size: int) -> torch.Tensor:
    """One rank's rows of tensors of these shapes, one after the other, each filled up to what every rank has."""
    sizes = _padded(shapes, size)
    own = parts[0].new_empty(sum(sizes))
    for part, room in zip(parts, own.split(sizes), strict=True):
        room[: part.numel()].copy_(part.reshape(-1))
        room[part.numel() :].zero_()
    return own


def joined_rows(gathered: torch.Tensor, shapes: Shapes, size: int) -> list[torch.Tensor]:
    """The whole tensors, from what every rank has packed, one rank after the other."""
    columns = gathered.view(size, -1).split(_padded(shapes, size), dim=1)
    return [column.reshape(-1)[: prod(shape)].reshape(shape) for column, shape in zip(columns, shapes, strict=True)]


def spread(wholes: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Whole tensors as (ranks, numbers of one rank): each rank's rows packed."""
    sizes = _padded([tuple(x.shape) for x in wholes], size)
    out = wholes[0].new_empty((size, sum(sizes)))
    for x, column in zip(wholes, out.split(sizes, dim=1), strict=True):
        flat = x.reshape(-1)
        for rank, row in enumerate(column):
            piece = flat[rank * row.numel() : (rank + 1) * row.numel()]
            row[: piece.numel()].copy_(piece)
            row[piece.numel() :].zero_()
    return out


def unpacked(own: torch.Tensor, shapes: Shapes, rank: int, size: int) -> list[torch.Tensor]:
    """One rank's rows of tensors of these shapes, from where they were packed."""
    out = []
    for shape, part in zip(shapes, own.split(_padded(shapes, size)), strict=True):
        rows = rows_of(shape[0], rank, size)
        length = rows.stop - rows.start
        out.append(part[: length * prod(shape[1:])].view(length, *shape[1:]))
    return out


def _padded(shapes: Shapes, size: int) -> list[int]:
    """Numbers in the largest of the ranks' shards of each."""
    return [-(-shape[0] // size) * prod(shape[1:]) for shape in shapes]
