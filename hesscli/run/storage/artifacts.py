"""Vectors over a model's parameters as files beside the report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hesscli.linalg.space import ParameterSpace, ParameterVector
from hesscli.run.storage.tensor_file import write_tensors


@dataclass(frozen=True, slots=True)
class VectorFile:
    """What one safetensors file holds; the run writes it when its folder stands."""

    name: str
    vectors: Mapping[str, ParameterVector]
    """By label: a parameter's part is stored under the parameter's name, then `.label` unless that is empty."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def save_vectors(folder: Path, space: ParameterSpace, file: VectorFile, *, run_id: str) -> str:
    """Write the file into `folder` and return its name. Each part is copied to the host in turn, none is joined.

    Shards are put together part by part; every rank takes part, and writes to its own folder.
    """
    parts = {
        f"{name}.{label}" if label else name: (i, part)
        for label, vector in file.vectors.items()
        for i, (name, part) in enumerate(zip(space.names, vector, strict=True))
    }
    write_tensors(folder / file.name, _Wholes(space, parts), {**file.metadata, "run_id": run_id})
    return file.name


class _Wholes(Mapping[str, torch.Tensor]):
    """Parts by name, each made whole when it is asked for."""

    def __init__(self, space: ParameterSpace, parts: Mapping[str, tuple[int, torch.Tensor]]) -> None:
        self._space, self._parts = space, parts

    def __getitem__(self, name: str) -> torch.Tensor:
        i, part = self._parts[name]
        return self._space.whole(i, part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
