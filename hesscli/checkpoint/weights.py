"""The weight files before they are loaded: all there, whole, and of floating-point numbers."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hesscli.errors import UnavailableError

# Storage types in the safetensors format, https://huggingface.co/docs/safetensors: what a derivative exists in.
_FLOATING = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_PICKLE_NEEDS = (2, 10)  # older torch.load(weights_only=True) can still be made to run code: CVE-2026-24747


Header = dict[str, tuple[str, tuple[int, ...], int]]
"""Of each tensor in a file its dtype in the format's words, its shape, and the place of its first byte."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weight files that passed their checks."""

    files: tuple[Path, ...]
    pickled: bool
    elements: int | None
    """Numbers in them, None for pickles (their headers are not read)."""
    stored_bytes: int


def shard_names(entry: Path, *, id: str) -> list[str]:
    """The files that `entry` stands for: itself, or what the index names.

    Raises:
        UnavailableError: the index cannot be read or names files outside its folder.
    """
    if not entry.name.endswith(".index.json"):
        return [entry.name]
    remedy = "fetch or save the checkpoint again"
    try:
        shards = set(json.loads(entry.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{entry.name} of '{id}' is not an index of shards"
        raise UnavailableError("weights", what, remedy) from error
    if not shards or any(not isinstance(name, str) or Path(name).name != name for name in shards):
        what = f"{entry.name} of '{id}' names no files, or files outside its folder"
        raise UnavailableError("weights", what, remedy)
    return sorted(shards)


def check_weights(entry: Path, *, id: str) -> Weights:
    """The files behind `entry`, each of them whole.

    Raises:
        UnavailableError: a shard is missing, a file is empty, cut off or not what its name says, the weights
            are quantised, or they are pickles and this torch cannot read those safely.
    """
    files = tuple(entry.parent / name for name in shard_names(entry, id=id))
    for file in files:
        if not file.is_file():
            what = f"{file.name} of '{id}' is missing, though {entry.name} names it"
            raise UnavailableError("weights", what, "fetch or save the checkpoint again")
        if file.stat().st_size == 0:
            raise UnavailableError("weights", f"{file.name} of '{id}' is empty", "fetch or save it again")
    size = sum(file.stat().st_size for file in files)
    if not entry.name.startswith(("pytorch_model", "adapter_model.bin")):
        return Weights(files, False, sum(_check_safetensors(file, id=id) for file in files), size)
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if installed < _PICKLE_NEEDS:
        what = f"torch {torch.__version__} cannot read pickles safely"
        raise UnavailableError("weights", what, "upgrade to torch 2.10, or use a safetensors checkpoint")
    return Weights(files, True, None, size)


def stored_tensors(file: Path) -> Header:
    """The header of a safetensors file.

    Raises UnavailableError where the file is none.
    """
    header, room = _header(file, id=file.parent.name)
    first = file.stat().st_size - room
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), first + tensor["data_offsets"][0])
        for name, tensor in header.items()
        if name != "__metadata__"
    }


def unsound_pickle(which: str) -> UnavailableError:
    """Of a pickle that torch does not read as tensors alone."""
    what = f"{which} is damaged, or holds more than tensors and would run code"
    return UnavailableError("weights", what, "use a safetensors checkpoint")


def _check_safetensors(file: Path, *, id: str) -> int:
    """How many numbers the file holds; its header agrees with its length."""
    header, room = _header(file, id=id)
    elements, end = 0, 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, count = tensor["dtype"], math.prod(tensor["shape"])
            end = max(end, tensor["data_offsets"][1])
        except (KeyError, TypeError, IndexError) as error:
            raise _corrupt(file, id, f"no shape, type or place for {name}") from error
        if dtype.startswith(("F8", "F4", "F6")) or (dtype not in _FLOATING and _is_weight(name)):
            what = f"'{id}' is quantised: {name} is stored as {dtype}, which has no exact curvature"
            raise UnavailableError("weights", what, "use the unquantised checkpoint")
        elements += count
    if end > room:
        what = f"{file.name} of '{id}' is cut off: {room} bytes of data where its header promises {end}"
        raise UnavailableError("weights", what, "fetch or save it again")
    if end < room:
        raise _corrupt(file, id, f"{room - end} bytes more than its header promises")
    return elements


def _header(file: Path, *, id: str) -> tuple[dict[str, Any], int]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if prefix == b"version ":  # the pointer that git leaves where it did not fetch the large file
            what = f"{file.name} of '{id}' is a git-lfs pointer, not the weights"
            raise UnavailableError("weights", what, "run git lfs pull in its folder")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= _LONGEST_HEADER:
            raise _corrupt(file, id, "its first bytes are no header length")
        if 8 + length > size:
            what = f"{file.name} of '{id}' is cut off inside its header: {size} bytes"
            raise UnavailableError("weights", what, "fetch or save it again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise _corrupt(file, id, "its header is not JSON") from error
    if not isinstance(header, dict) or not header:
        raise _corrupt(file, id, "its header lists no tensors")
    return header, size - 8 - length


def _is_weight(name: str) -> bool:
    """Whether integers under this name are packed weights; masks and position ids are integers of right."""
    return any(part in name.rsplit(".", 1)[-1] for part in ("weight", "blocks", "packed"))


def _corrupt(file: Path, id: str, why: str) -> UnavailableError:
    return UnavailableError(
        "weights", f"{file.name} of '{id}' is not a safetensors file ({why})", "fetch or save it again"
    )
