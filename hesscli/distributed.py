"""The processes of one run, or of several in turn: who they are, sums over them, and one failure for all of them.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from hesscli.connections import connections, hang_up
from hesscli.errors import HessError, UsageError
from hesscli.shards import Shapes, joined_rows, packed, rows_of, spread, unpacked

T = TypeVar("T")
Coming = Callable[[], list[torch.Tensor]]  # waits for tensors that are on their way

# A process may wait for the first one to read a large checkpoint; one that died is noticed long before.
_TIMEOUT = timedelta(hours=1)
_POLL, _GRACE = 0.2, 5.0  # seconds between looks for a failure elsewhere, and to leave in after one
_PATIENCE = 300.0  # seconds more where other runs follow: what is computed between two collectives ends by itself
_HERE, _FAILED, _SEEN = "here", "failed", "seen"
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


class LostError(HessError):
    """Another rank has failed, and what it said; the exit code is its own."""

    def __init__(self, rank: int, what: str, code: int) -> None:
        super().__init__(f"rank {rank}", what)
        self.code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override] # of one failure, not of a kind
        """That of the rank that failed."""
        return self.code

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended that rank, so that nothing is to follow."""
        return self.code > 128


class GoneError(HessError):
    """A process has left without a word: nothing can follow that needs all of them."""

    def __init__(self) -> None:
        super().__init__("ranks", "another process has ended", "its own output says why; the system may have ended it")


@dataclass(slots=True)
class _Meeting:
    """The store through which processes find each other, and how often they have joined."""

    store: Any
    rank: int
    size: int
    times: int = 0
    series: "_Watch | None" = None
    """Of the series that the next group is a part of."""


_meeting: _Meeting | None = None


def _meet() -> _Meeting:
    """Find the others, once in the life of a process. Raises UsageError where there is nothing to join."""
    global _meeting
    if _meeting is None:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            size = _world_size()
            why = f"WORLD_SIZE is {size}" if size > 1 else "several processes are needed"
            raise UsageError("model.placement", f"{why}, and {missing[0]} is not set", _START)
        _meeting = _Meeting(*next(dist.rendezvous("env://", timeout=_TIMEOUT)))
    return _meeting


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def joined(*, wanted: bool) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, for the length of the block; alone where there is only one.

    `wanted`: the run is to be shared even if one process is all there is. A rank that fails makes the others raise
    LostError with its reason within seconds, or ends them where they wait in a collective that does not return. On
    the way out the ranks wait for each other and leave the group. Within a series (`in_turn`) they can join again.

    Raises UsageError where there is nothing to join, GoneError where a process has ended.
    """
    if _world_size() == 1 and not wanted:
        yield ALONE
        return
    meeting = _meet()
    meeting.times += 1
    name, patience = f"hess/{meeting.times}", 0.0 if meeting.series is None else _PATIENCE
    _arrive(meeting, name)
    with _group(meeting, name) as found, _shared_failure(meeting, name, patience=patience):
        global _current
        _current = found
        try:
            yield found
            dist.barrier()
        finally:
            _current = ALONE


@contextmanager
def in_turn() -> Iterator[bool]:
    """Several runs one after the other, each a `joined` block whose failure is its own; yields whether this one leads.

    What fails outside of them, a signal, or a process that is gone, ends the series for all ranks, as it does a run.
    """
    if _world_size() == 1:
        yield True
        return
    meeting = _meet()
    meeting.times += 1
    with _shared_failure(meeting, f"hess/{meeting.times}", patience=0.0) as meeting.series:
        try:
            yield meeting.rank == 0
        finally:
            meeting.series = None


def _arrive(meeting: _Meeting, name: str) -> None:
    """Wait for all, so that a signal is heard meanwhile, and what ends the series; a group's own way in hears nothing.

    Raises LostError or GoneError.
    """
    store, end = dist.PrefixStore(name, meeting.store), time.monotonic() + _TIMEOUT.total_seconds()
    try:
        present = store.add(_HERE, 1)
        while present < meeting.size:
            if meeting.series is not None and meeting.series.told is not None:
                raise LostError(*meeting.series.told)
            if time.monotonic() > end:
                raise GoneError
            time.sleep(_POLL / 4)
            present = store.add(_HERE, 0)
    except RuntimeError as error:  # who keeps the store has left
        raise GoneError from error


@contextmanager
def _group(meeting: _Meeting, name: str) -> Iterator[Ranks]:
    device = _own_device()
    before = connections()
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore(name, meeting.store),
        rank=meeting.rank,
        world_size=meeting.size,
        timeout=_TIMEOUT,
    )
    own = connections() - before
    try:
        yield Ranks(meeting.rank, meeting.size, device)
    except BaseException:
        hang_up(own)
        if device.type == "cpu" or meeting.size == 1:
            dist.destroy_process_group()
        elif meeting.series is not None:  # else NCCL may wait here for ranks that are gone; it ends with the process
            _abort()
        raise
    dist.destroy_process_group()


def _own_device() -> torch.device:
    """The GPU of this process, the host on a machine without one. Raises UsageError where GPUs are fewer."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if number >= count:
        what = f"process {number} of this machine has no GPU of its own: it finds {count}"
        raise UsageError("ranks", what, "lower --nproc-per-node, or set CUDA_VISIBLE_DEVICES= for the host")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _abort() -> None:
    """Leave a group whose kernels wait on the device for ranks that have left it."""
    with suppress(Exception):  # it is gone, or is being left by the other thread
        dist.distributed_c10d._abort_process_group()


@contextmanager
def _shared_failure(meeting: _Meeting, name: str, *, patience: float) -> Iterator["_Watch"]:
    """What one rank raises ends the block on every rank."""
    store, rank = dist.PrefixStore(name, meeting.store.clone()), meeting.rank
    watch = _Watch(dist.PrefixStore(name, meeting.store.clone()), rank, meeting.size, patience)
    watch.start()
    try:
        yield watch
    except BaseException as error:
        if not isinstance(error, HessError):
            # A collective fails because of another rank's failure, a signal comes because of it: hear that one first.
            watch.wait(_GRACE / 2 if _is_lost(error) else 2 * _POLL)
        if watch.told is None:
            with suppress(RuntimeError):  # who keeps the store has left
                store.compare_set(_FAILED, "", json.dumps([rank, *_in_words(error)]))
                watch.wait_for_all(_GRACE)
        told = watch.told
        if told is not None and told[0] != rank and not isinstance(error, HessError):
            raise LostError(*told) from error
        if _is_lost(error):
            raise GoneError from error
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

    def __init__(self, store: Any, rank: int, size: int, patience: float) -> None:
        super().__init__(daemon=True)
        self._store, self._rank, self._size, self._patience = store, rank, size, patience
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
        if rank == self._rank or self._left.wait(_GRACE):
            return
        if self._patience:
            if torch.cuda.is_available():
                _abort()
            if self._left.wait(self._patience):
                return
        if self._rank == 0:
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
                if self._store.add(_SEEN, 0) >= self._size:
                    return
            except RuntimeError:
                return
            time.sleep(_POLL / 4)

    def stop(self) -> None:
        """The block is left."""
        self._left.set()
        self.join(timeout=2 * _POLL)
