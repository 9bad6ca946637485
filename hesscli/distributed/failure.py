"""One failure for all processes of a run: what one of them raises ends the others, and none is left waiting."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hesscli.errors import HessError

# A process may wait for the first one to read a large checkpoint; one that died is noticed long before.
TIMEOUT = timedelta(hours=1)
POLL = 0.2  # seconds between looks for a failure elsewhere
_GRACE = 5.0  # seconds to leave in after one
PATIENCE = 300.0  # seconds more where other runs follow: what is computed between two collectives ends by itself
_FAILED, _SEEN = "failed", "seen"


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

    def __init__(
        self,
        what: str = "another process has ended",
        remedy: str = "its own output says why; the system may have ended it",
    ) -> None:
        super().__init__("ranks", what, remedy)


def told(store: Any) -> tuple[int, str, int] | None:
    """What a rank has told the others of its failure: its number, its words, the exit code."""
    if not store.check([_FAILED]):
        return None
    rank, what, code = json.loads(store.get(_FAILED))
    return rank, what, code


def tell(store: Any, rank: int, error: BaseException) -> None:
    """Tell the others, unless one of them has failed before."""
    store.compare_set(_FAILED, "", json.dumps([rank, *in_words(error)]))


@contextmanager
def shared_failure(stores: Callable[[], Any], *, rank: int, size: int, patience: float) -> Iterator["Watch"]:
    """What one rank raises ends the block on every rank. `stores` makes connections to what all of them can read."""
    store = stores()
    watch = Watch(stores(), rank, size, patience)
    watch.start()
    try:
        yield watch
    except BaseException as error:
        if not isinstance(error, HessError):
            # A collective fails because of another rank's failure, a signal comes because of it: hear that one first.
            watch.wait(_GRACE / 2 if _is_lost(error) else 2 * POLL)
        if watch.told is None:
            with suppress(RuntimeError):  # who keeps the store has left
                tell(store, rank, error)
                watch.wait_for_all(_GRACE)
        told = watch.told
        if told is not None and told[0] != rank and not isinstance(error, HessError):
            raise LostError(*told) from error
        if _is_lost(error):
            raise _gone(error) from error
        raise
    finally:
        watch.stop()


def _is_lost(error: BaseException) -> bool:
    """Whether this is what a collective says of a peer that is gone."""
    words = ("onnection closed", "onnection reset", "roken pipe", "Timed out waiting", "socket")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _gone(error: BaseException) -> GoneError:
    if "Timed out waiting" not in str(error):
        return GoneError()
    return GoneError(f"another process has not answered for {TIMEOUT.total_seconds() / 60:g} minutes")


def in_words(error: BaseException) -> tuple[str, int]:
    """(what to tell the other ranks, the exit code)."""
    if isinstance(error, HessError):
        return str(error), error.exit_code
    number = getattr(error, "number", None)  # a signal
    if number is not None:
        return "stopped by a signal", 128 + int(number)
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}; this is a bug, HESS_DEBUG=1 shows where", 1


def abort_group() -> None:
    """Leave a group whose kernels wait on the device for ranks that have left it."""
    with suppress(Exception):  # it is gone, or is being left by the other thread
        dist.distributed_c10d._abort_process_group()


class Watch(threading.Thread):
    """Looks for a failure of another rank, and ends this process where its main thread does not come back.

    A process whose launcher is gone ends too, as by the signal that a launcher sends: nobody would hear of its result.
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float) -> None:
        super().__init__(daemon=True)
        self._store, self._rank, self._size, self._patience = store, rank, size, patience
        self._left, self._heard = threading.Event(), threading.Event()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.told: tuple[int, str, int] | None = None

    def run(self) -> None:
        """Look until the block is left, or a failure is there."""
        try:
            while (found := told(self._store)) is None:
                if self._left.wait(POLL):
                    return
                if self._launcher not in (None, os.getppid()):
                    self._follow_launcher()
                    return
            self.told = found
            self._heard.set()
            self._store.add(_SEEN, 1)
        except RuntimeError:  # who keeps the store has left: the first rank, or the launcher of the first machine
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not self._left.wait(_GRACE):
                self._follow_launcher()
            return
        self._end(*found)

    def _end(self, rank: int, what: str, code: int) -> None:
        if rank == self._rank or self._left.wait(_GRACE):
            return
        if self._patience:
            if torch.cuda.is_available():
                abort_group()
            if self._left.wait(self._patience):
                return
        if self._rank == 0:
            sys.stderr.write(f"error: rank {rank}: {what}\n")
            sys.stderr.flush()
        os._exit(code)

    def _follow_launcher(self) -> None:
        """Stop the main thread by a signal; where it waits in a collective it would not hear that."""
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._left.wait(_GRACE):
            os._exit(128 + signal.SIGTERM)

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
            time.sleep(POLL / 4)

    def stop(self) -> None:
        """The block is left."""
        self._left.set()
        self.join(timeout=2 * POLL)
