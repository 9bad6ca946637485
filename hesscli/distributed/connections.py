"""The connections of this process, and the end of some of them.

A group of gloo's keeps its connections for as long as anything refers to it, as caches of torch do: ranks that wait
for this one would hear nothing of it until this process ends. Told by Linux's `/proc`; elsewhere there are none.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

_OPEN = Path("/proc/self/fd")


def connections() -> set[str]:
    """The sockets that are open, each by a name that no other one ever has."""
    return set(_sockets())


def hang_up(names: set[str]) -> None:
    """Shut those of the sockets that are connected: who waits at the other end hears of it at once."""
    for name, number in _sockets().items():
        if name in names:
            with suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
                found.getpeername()  # raises for one that listens: gloo ends the process when that one is shut
                found.shutdown(socket.SHUT_RDWR)


def _sockets() -> dict[str, int]:
    found = {}
    for entry in _OPEN.iterdir() if _OPEN.is_dir() else ():
        with suppress(OSError):  # closed meanwhile
            name = os.readlink(entry)
            if name.startswith("socket:"):
                found[name] = int(entry.name)
    return found
