"""What was measured: the names that users know it by, and a hash of the weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hesscli.events import Advanced, Finished, OnEvent, Started

_CHUNK = 1 << 22  # bytes per read: large enough that hashing, not reading, sets the pace


@dataclass(frozen=True, slots=True)
class Identity:
    """Which weights a figure belongs to; goes into the report as it stands."""

    id: str
    """The hub id, `demo`, or the folder's own name (never a path: a report names no machine)."""
    revision: str | None
    """As the user asked for it."""
    commit: str | None
    """The hub's commit that the files are from; None for a folder and for `demo`."""
    weights_sha256: str
    """See `weights_sha256`."""
    class_name: str
    task: str
    """What the head does, such as `causal-lm`."""
    num_parameters: int
    """Tied parameters count once."""
    dtype: str
    """Of most of the parameters' elements, such as `float32`."""
    attention: str
    """The attention that the model runs, such as `eager` or `sdpa`."""
    tied: bool
    """Whether input and output embeddings are one parameter."""
    base: str | None
    """Of an adapter: the model that it stands in, as `ID@COMMIT`, or `ID` for a folder; then `weights_sha256` is over
    the files of both."""


def weights_sha256(files: Sequence[Path], *, on_event: OnEvent) -> str:
    """The sha256 of the bytes of the weight files, one after the other in the order of their names.

    For one file it is the file's own sha256, which the hub shows; for shards it is that of
    `cat model-*.safetensors`. File names and times do not enter. The same weights in other shards, or with
    another header, are other bytes and have another hash: equal hashes mean equal weights, not the reverse.
    """
    digest = hashlib.sha256()
    on_event(Started("hash weights", len(files), "files"))
    for done, file in enumerate(sorted(files, key=lambda path: path.name), start=1):
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        on_event(Advanced("hash weights", done, file.name))
    on_event(Finished("hash weights"))
    return digest.hexdigest()
