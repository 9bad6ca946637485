"""The processes that hold one run together, and what they exchange.

torchrun starts N processes, and each does the same steps on its shard of every vector and on its rows of the data. So
that they take the same branches, a scalar that steers control flow is the same bits in each: sums are made of all
parts in the order of ranks, and what only one process can know (a file, a clock, free memory) comes from the first
one, or is the least of all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from hesscli.distributed.shards import Shapes, joined_rows, packed, rows_of, spread, unpacked

T = TypeVar("T")
Coming = Callable[[], list[torch.Tensor]]  # waits for tensors that are on their way

# By the names of torch 2.13; the older ones warn there.
_all_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that hold one run together, as this one sees them. Alone, every method is the identity."""

    rank: int
    size: int
    device: torch.device | None
    """Where this process computes; None where it is alone and the checkpoint decides."""

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over ranks, the same bits on each: one all-gather of small float64 arrays of one shape."""
        if self.size == 1:
            return values
        own = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).reshape(-1)
        parts = own.new_empty(self.size * own.numel())
        _all_gather(parts, own)
        total: np.ndarray = parts.numpy().reshape(self.size, *np.shape(values)).sum(axis=0)
        return total

    def least(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return min(self.each(value))

    def each(self, value: T) -> list[T]:
        """Every rank's value, in their order; for small things."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agreed(self, value: T) -> T:
        """The first rank's value."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def rows(self, length: int) -> slice:
        """This rank's share of `length` rows: blocks of equal size, the last ones shorter or empty.

        It is what DTensor's Shard(0) has, so 97 rows are 49 and 48.
        """
        return rows_of(length, self.rank, self.size)

    def whole(self, parts: Sequence[torch.Tensor], shapes: Shapes) -> list[torch.Tensor]:
        """Tensors of these shapes from the ranks' rows of them, by one all-gather; all of one dtype and device."""
        return self.gather(parts, shapes)()

    def gather(self, parts: Sequence[torch.Tensor], shapes: Shapes) -> Coming:
        """Begin the same; what comes back waits for it, and must be called once."""
        if self.size == 1:
            return lambda: [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        own = packed(parts, shapes, self.size)
        gathered = own.new_empty(self.size * own.numel())
        wait = self.gather_into(gathered, own)

        def arrived() -> list[torch.Tensor]:
            wait()
            return joined_rows(gathered, shapes, self.size)

        return arrived

    def sum_shards(self, wholes: Sequence[torch.Tensor]) -> Coming:
        """Begin to sum over ranks by one reduce-scatter, all of one dtype and device; waits for this rank's rows."""
        if self.size == 1:
            return lambda: list(wholes)
        shapes, sent = [tuple(x.shape) for x in wholes], spread(wholes, self.size)
        own = sent.new_empty(sent.shape[1])
        wait = self.reduce_into(own, sent.view(-1))

        def arrived() -> list[torch.Tensor]:
            wait()
            return unpacked(own, shapes, self.rank, self.size)

        return arrived

    def gather_into(self, gathered: torch.Tensor, own: torch.Tensor) -> Callable[[], object]:
        """Begin to put every rank's numbers one after the other; a count of memory, without data, sends none."""
        wait: Callable[[], object] = _all_gather(gathered, own, async_op=True).wait
        return wait

    def reduce_into(self, own: torch.Tensor, sent: torch.Tensor) -> Callable[[], object]:
        """Begin to make this rank's share of the sums over ranks; likewise."""
        wait: Callable[[], object] = _reduce_scatter(own, sent, async_op=True).wait
        return wait


ALONE = Ranks(0, 1, None)
_current = ALONE


def ranks() -> Ranks:
    """The processes that this one has joined; itself alone where it has joined none."""
    return _current


@contextmanager
def holding(found: Ranks) -> Iterator[Ranks]:
    """For the block these are the processes that `ranks` gives."""
    global _current
    _current = found
    try:
        yield found
    finally:
        _current = ALONE
