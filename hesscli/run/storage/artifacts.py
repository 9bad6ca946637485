"""Vectors over a model's parameters as files beside the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    """Write the file into `folder` and return its name. Each part is copied to the host in turn, none is joined."""
    tensors = {
        f"{name}.{label}" if label else name: part
        for label, vector in file.vectors.items()
        for name, part in zip(space.names, vector, strict=True)
    }
    write_tensors(folder / file.name, tensors, {**file.metadata, "run_id": run_id})
    return file.name
