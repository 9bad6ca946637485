"""The products of a run on disk while it lasts: a run that was cut off takes them from there and ends the same.

Probes are deterministic: made again from the same products, every basis, coefficient and random vector is the same bit
for bit. So a log of products is the state of any probe, wherever in it the run was cut off.
"""

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hesscli.errors import UsageError
from hesscli.linalg.mapped import release
from hesscli.linalg.space import ParameterSpace, ParameterVector
from hesscli.run.storage.state import State
from hesscli.run.storage.tensor_file import write_tensors

_SHARE = 0.5  # of the free disk that a log may take


class ProductLog:
    """Products in the order in which they were asked for, one file for each request and rank.

    Costs the disk a vector for each product, until the run has ended. A file appears whole or not at all. Where the
    disk has no room the log ends, and what it holds stays good. Over ranks each keeps its shards, a request counts
    where every rank has it whole, and the log of all ends where one rank's has no room.
    """

    def __init__(self, state: State, space: ParameterSpace) -> None:
        self._state, self._space = state, space
        self._next = 0
        self._reading = True
        self.is_full = False

    def take(self, vs: Sequence[ParameterVector]) -> tuple[list[ParameterVector], dict[str, Any]] | None:
        """The next request's products and memory, if they are there and were asked for with the same vectors."""
        if not self._reading:
            return None
        found = self._read(self._state.file(self._next), vs)
        if not self._state.ranks.least(int(found is not None)):
            self._reading = False
            self._state.forget(start=self._next)
            return None
        self._next += 1
        return found

    def add(self, vs: Sequence[ParameterVector], products: Sequence[ParameterVector], memory: dict[str, Any]) -> None:
        """Keep one request's products, with what the operator wants to remember after them.

        Raises UsageError where this machine cannot have the folder, as one of several may not.
        """
        if self.is_full:
            return
        try:
            self._state.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{str(self._state.folder)!r} cannot be made ({error.strerror}), where products are kept meanwhile"
            raise UsageError("output.dir", what, "give a folder with -o that every machine can make") from error
        if not self._has_room(len(products) * self._space.vector_bytes()):
            self.is_full = True
            return
        tensors = {
            f"{i}.{name}": part
            for i, product in enumerate(products)
            for name, part in zip(self._space.names, product, strict=True)
        }
        half = self._state.half(self._next)
        try:
            write_tensors(half, tensors, {"input": _digest(vs), "memory": json.dumps(memory)})
            os.replace(half, self._state.file(self._next))
        except OSError:  # a full disk is not left fuller
            half.unlink(missing_ok=True)
            raise
        self._next += 1

    def _has_room(self, needed: int) -> bool:
        """Whether all ranks' files may be written, as if all were on the disk with the least room."""
        each = self._state.ranks.each((needed, shutil.disk_usage(self._state.folder).free))
        return sum(size for size, _ in each) <= _SHARE * min(free for _, free in each)

    def _read(self, file: Path, vs: Sequence[ParameterVector]) -> tuple[list[ParameterVector], dict[str, Any]] | None:
        try:
            with safe_open(file, framework="pt") as stored:
                metadata = stored.metadata()
                if metadata["input"] != _digest(vs):
                    return None
                products = [self._space.zeros() for _ in vs]
                for i, product in enumerate(products):
                    for name, part in zip(self._space.names, product, strict=True):
                        release(part.copy_(stored.get_tensor(f"{i}.{name}")))
                return products, json.loads(metadata["memory"])
        except (OSError, SafetensorError, KeyError, ValueError):  # none, or one that is not whole
            return None


def _digest(vs: Sequence[ParameterVector]) -> str:
    """A checksum of the vectors that a request was made with."""
    value = 0
    for part in (part for v in vs for part in v):
        value = zlib.crc32(part.detach().cpu().contiguous().numpy().data, value)
        release(part)
    return f"{len(vs)}:{value:08x}"
