"""The processes of one run: who they are, sums over them, and one failure for all of them.

torchrun starts N processes, and each does the same steps on its shard of every vector and on its rows of the data. So
that they take the same branches, a scalar that steers control flow is the same bits in each: sums are made of all
parts in the order of ranks, and what only one process can know (a file, a clock, free memory) comes from the first
one, or is the least of all.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from hesscli.errors import HessError, UsageError

T = TypeVar("T")

# A process may wait for the first one to read a large checkpoint; one that died is noticed long before.
_TIMEOUT = timedelta(hours=1)
_POLL, _GRACE = 0.2, 5.0  # seconds between looks for a failure elsewhere, and to leave in after one
_FAILED, _SEEN = "failed", "seen"
# By the names of torch 2.13; the older ones warn there.
_all_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
_START = "start it with torchrun --nproc-per-node N -m hesscli"


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

    def whole(self, parts: Sequence[torch.Tensor], shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Tensors of these shapes from the ranks' rows of them, by one all-gather; all of one dtype and device."""
        if self.size == 1:
            return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        sizes = [_padded(shape, self.size) for shape in shapes]
        own = parts[0].new_zeros(sum(sizes))
        for part, room in zip(parts, own.split(sizes), strict=True):
            room[: part.numel()].copy_(part.reshape(-1))
        gathered = own.new_empty(self.size * own.numel())
        _all_gather(gathered, own)
        columns = gathered.view(self.size, -1).split(sizes, dim=1)
        return [
            column.reshape(-1)[: _numel(shape)].reshape(shape) for column, shape in zip(columns, shapes, strict=True)
        ]

    def shard_sums(self, wholes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """This rank's rows of the sums over ranks, by one reduce-scatter; all of one dtype and device."""
        if self.size == 1:
            return list(wholes)
        shapes = [tuple(x.shape) for x in wholes]
        sizes = [_padded(shape, self.size) for shape in shapes]
        sent = wholes[0].new_zeros((self.size, sum(sizes)))
        for x, column in zip(wholes, sent.split(sizes, dim=1), strict=True):
            flat = x.reshape(-1)
            for rank, row in enumerate(column):
                piece = flat[rank * row.numel() : (rank + 1) * row.numel()]
                row[: piece.numel()].copy_(piece)
        own = sent.new_empty(sum(sizes))
        _reduce_scatter(own, sent.view(-1))
        out = []
        for shape, part in zip(shapes, own.split(sizes), strict=True):
            rows = self.rows(shape[0])
            out.append(part[: _numel((rows.stop - rows.start, *shape[1:]))].view(rows.stop - rows.start, *shape[1:]))
        return out


ALONE = Ranks(0, 1, None)
_current = ALONE


def ranks() -> Ranks:
    """The processes that this one has joined; itself alone where it has joined none."""
    return _current


def rows_of(length: int, rank: int, size: int) -> slice:
    """The rows of a rank where `length` of them are split in blocks of equal size."""
    block = -(-length // size)
    start = min(length, rank * block)
    return slice(start, min(length, start + block))


def _numel(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _padded(shape: Sequence[int], size: int) -> int:
    """Numbers in the largest of the ranks' shards."""
    return -(-shape[0] // size) * _numel(shape[1:])


class LostError(HessError):
    """Another rank has failed, and what it said; the exit code is its own."""

    def __init__(self, rank: int, what: str, code: int) -> None:
        super().__init__(f"rank {rank}", what)
        self.code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override] # of one failure, not of a kind
        """That of the rank that failed."""
        return self.code


@contextmanager
def joined(*, wanted: bool) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, for the length of the block; alone where there is only one.

    `wanted`: the run is to be shared even if one process is all there is. A rank that fails makes the others raise
    LostError with its reason within seconds, or ends them where they wait in a collective that does not return. On
    the way out the ranks wait for each other and leave the group.

    Raises UsageError where there is nothing to join.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1 and not wanted:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        why = f"WORLD_SIZE is {size}" if size > 1 else "several processes are needed"
        raise UsageError("model.placement", f"{why}, and {missing[0]} is not set", _START)
    with _group() as (store, found), _shared_failure(store, found):
        global _current
        _current = found
        try:
            yield found
            dist.barrier()
        finally:
            _current = ALONE


@contextmanager
def _group() -> Iterator[tuple[Any, Ranks]]:
    store, rank, size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore("hess", store),
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
    )
    try:
        yield store.clone(), Ranks(rank, size, device)
    except BaseException:
        if device.type == "cpu":  # NCCL may wait here for ranks that are gone; it ends with the process
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def _shared_failure(store: Any, found: Ranks) -> Iterator[None]:
    """What one rank raises ends the block on every rank."""
    watch = _Watch(store, found)
    watch.start()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, HessError):
            # A collective fails because of another rank's failure, a signal comes because of it: hear that one first.
            watch.wait(_GRACE / 2 if _is_lost(error) else 2 * _POLL)
        if watch.told is None:
            store.compare_set(_FAILED, "", json.dumps([found.rank, *_in_words(error)]))
            watch.wait_for_all(_GRACE)
        told = watch.told
        if told is not None and told[0] != found.rank and not isinstance(error, HessError):
            raise LostError(*told) from error
        if _is_lost(error):
            what, remedy = "another process has ended", "its own output says why; the system may have ended it"
            raise HessError("ranks", what, remedy) from error
        raise
    finally:
        watch.stop()


def _is_lost(error: BaseException) -> bool:
    """Whether this is what a collective says of a peer that is gone."""
    words = ("onnection closed", "onnection reset", "roken pipe", "Timed out waiting", "socket")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _in_words(error: BaseException) -> tuple[str, int]:
    """(what to tell the other ranks, the exit code)."""
    if isinstance(error, HessError):
        return str(error), error.exit_code
    number = getattr(error, "number", None)  # a signal
    if number is not None:
        return "stopped by a signal", 128 + int(number)
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}; this is a bug, HESS_DEBUG=1 shows where", 1


class _Watch(threading.Thread):
    """Looks for a failure of another rank, and ends this process where its main thread does not come back."""

    def __init__(self, store: Any, found: Ranks) -> None:
        super().__init__(daemon=True)
        self._store, self._found = store, found
        self._left, self._heard = threading.Event(), threading.Event()
        self.told: tuple[int, str, int] | None = None

    def run(self) -> None:
        """Look until the block is left, or a failure is there."""
        try:
            while not self._store.check([_FAILED]):
                if self._left.wait(_POLL):
                    return
            rank, what, code = json.loads(self._store.get(_FAILED))
            self.told = rank, what, code
            self._heard.set()
            self._store.add(_SEEN, 1)
        except RuntimeError:  # who keeps the store has left
            return
        if rank == self._found.rank or self._left.wait(_GRACE):
            return
        if self._found.rank == 0:
            sys.stderr.write(f"error: rank {rank}: {what}\n")
            sys.stderr.flush()
        os._exit(code)

    def wait(self, seconds: float) -> None:
        """Until a failure is heard of, so long at the most."""
        self._heard.wait(seconds)

    def wait_for_all(self, seconds: float) -> None:
        """Until every rank has heard of the failure, so long at the most."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self._store.add(_SEEN, 0) >= self._found.size:
                    return
            except RuntimeError:
                return
            time.sleep(_POLL / 4)

    def stop(self) -> None:
        """The block is left."""
        self._left.set()
        self.join(timeout=2 * _POLL)
