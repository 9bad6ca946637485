"""How the processes of a run find each other, see that they were asked for the same, and part again."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hesscli.distributed.connections import connections, hang_up
from hesscli.distributed.failure import (
    PATIENCE,
    POLL,
    TIMEOUT,
    GoneError,
    LostError,
    Watch,
    abort_group,
    shared_failure,
    tell,
    told,
)
from hesscli.distributed.greeting import compare, greet
from hesscli.distributed.ranks import ALONE, Ranks, holding
from hesscli.errors import UsageError

_COMING = 600.0  # seconds that the first meeting is waited for, as torchrun does for its machines
_HERE = "here"
_START = "start it with torchrun --nproc-per-node N -m hesscli"


@dataclass(slots=True)
class _Meeting:
    """The store through which processes find each other, and how often they have joined."""

    store: Any
    rank: int
    size: int
    times: int = 0
    series: Watch | None = None
    """Of the series that the next group is a part of."""

    def store_of(self, name: str) -> Any:
        """A connection of its own, to what the processes say of one group."""
        return dist.PrefixStore(name, self.store.clone())

    def next_name(self) -> str:
        """Of the next group or series."""
        self.times += 1
        return f"hess/{self.times}"


_meeting: _Meeting | None = None


def _meet() -> _Meeting:
    """Find the store, once in the life of a process. Raises UsageError where there is nothing to join."""
    global _meeting
    if _meeting is None:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            size = _world_size()
            why = f"WORLD_SIZE is {size}" if size > 1 else "several processes are needed"
            raise UsageError("model.placement", f"{why}, and {missing[0]} is not set", _START)
        rank = int(os.environ["RANK"])
        _meeting = _Meeting(_find_store(rank), rank, _world_size())
    return _meeting


def _find_store(rank: int) -> Any:
    """As `dist.rendezvous` finds it, but that signals are heard while others are waited for.

    torchrun keeps one; else the first rank does. Raises UsageError where nobody is there to answer.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    end = time.monotonic() + _COMING
    while True:
        try:
            store = dist.TCPStore(
                host, port, is_master=keeps, timeout=timedelta(seconds=5), wait_for_workers=False, multi_tenant=True
            )
        except RuntimeError as error:
            if keeps:
                what = f"port {port} cannot be listened at"
                raise UsageError("ranks", what, "start again with another MASTER_PORT") from error
            if time.monotonic() > end:
                what = f"nobody answers at {host}:{port}, where the first process should be"
                raise UsageError("ranks", what, "see that it runs, and that MASTER_ADDR is its machine") from error
        else:
            store.set_timeout(TIMEOUT)
            return store


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def joined(*, wanted: bool, asked: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, for the length of the block; alone where there is only one.

    `wanted`: the run is to be shared even if one process is all there is. `asked`: what this one was asked for, by
    name, which must be the same for all, as their versions must be. A rank that fails makes the others raise
    LostError with its reason within seconds, or ends them where they wait in a collective that does not return. On
    the way out the ranks wait for each other and leave the group. Within a series (`in_turn`) they can join again.

    Raises UsageError where there is nothing to join or ranks differ, GoneError where a process has ended.
    """
    if _world_size() == 1 and not wanted:
        yield ALONE
        return
    meeting = _meet()
    name, patience = meeting.next_name(), 0.0 if meeting.series is None else PATIENCE
    # In a series the first one says what is to be done.
    device = _arrive(meeting, name, asked if asked and meeting.series is None else {})
    with (
        _group(meeting, name, device) as found,
        shared_failure(lambda: meeting.store_of(name), rank=meeting.rank, size=meeting.size, patience=patience),
        holding(found),
    ):
        yield found
        dist.barrier()


@contextmanager
def in_turn(asked: Mapping[str, str] | None = None) -> Iterator[bool]:
    """Several runs one after the other, each a `joined` block whose failure is its own; yields whether this one leads.

    What fails outside of them, a signal, or a process that is gone, ends the series for all ranks, as it does a run.
    Raises UsageError where they were asked for different series, or have different versions.
    """
    if _world_size() == 1:
        yield True
        return
    meeting = _meet()
    name = meeting.next_name()
    _arrive(meeting, name, asked or {})
    with shared_failure(
        lambda: meeting.store_of(name), rank=meeting.rank, size=meeting.size, patience=0.0
    ) as meeting.series:
        try:
            yield meeting.rank == 0
        finally:
            meeting.series = None


def decline(error: BaseException) -> None:
    """Tell the others that this process will not come, if they are on other machines and none has come yet.

    On one machine torchrun ends the others when the first one fails; of another machine it does not hear.
    """
    if _meeting is None and int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1:
        meeting = _meet()
        tell(meeting.store_of("hess/1"), meeting.rank, error)


def _arrive(meeting: _Meeting, name: str, asked: Mapping[str, str]) -> torch.device:
    """Wait for all, so that a signal is heard meanwhile, and what ends the series; a group's own way in hears nothing.

    Returns where this process is to compute. Raises UsageError where ranks differ, LostError or GoneError.
    """
    store = dist.PrefixStore(name, meeting.store)
    end = time.monotonic() + (_COMING if meeting.times == 1 else TIMEOUT.total_seconds())
    try:
        device = _own_device()
    except UsageError as error:
        tell(store, meeting.rank, error)
        raise
    try:
        greet(store, meeting.rank, asked, device=device.type)
        present = store.add(_HERE, 1)
        while present < meeting.size:
            failed = told(store) or (None if meeting.series is None else meeting.series.told)
            if failed is not None:
                raise LostError(*failed)
            if time.monotonic() > end:
                what = f"{present} of {meeting.size} processes have come"
                raise GoneError(what, "start the others too, on every machine")
            time.sleep(POLL / 4)
            present = store.add(_HERE, 0)
        compare(store, meeting.size)
    except RuntimeError as error:  # who keeps the store has left
        raise GoneError from error
    return device


@contextmanager
def _group(meeting: _Meeting, name: str, device: torch.device) -> Iterator[Ranks]:
    before = connections()
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore(name, meeting.store),
        rank=meeting.rank,
        world_size=meeting.size,
        timeout=TIMEOUT,
    )
    own = connections() - before
    try:
        yield Ranks(meeting.rank, meeting.size, device)
    except BaseException:
        hang_up(own)
        if device.type == "cpu" or meeting.size == 1:
            dist.destroy_process_group()
        elif meeting.series is not None:  # else NCCL may wait here for ranks that are gone; it ends with the process
            abort_group()
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
