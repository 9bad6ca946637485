"""Weights that are fetched layer by layer, on `meta`: the residence of an offloaded run, whose copies are counted.

It is the residence's own code that decides what is fetched and when; here to read a weight is to make a tensor without
data, and a part of a vector, which lies on the host, is copied where its layer runs.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from hesscli.checkpoint.offload import sizes_of
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import Offloaded
from hesscli.data import Batch
from hesscli.linalg.space import ParameterSpace
from hesscli.run.planning.counting.meta_bytes import VECTORS, WEIGHTS, MetaBytes

T = TypeVar("T")


class CountedFetch(Offloaded):
    """Reads as weights, and copies of parts as vectors, under a count that is set before each product."""

    def __init__(
        self, model: nn.Module, *, names: Sequence[str], parameters: Sequence[nn.Parameter], in_files: bool
    ) -> None:
        layers = tuple(f"{name}." for name in sizes_of(model).layers)
        reads = {name: partial(self._made, p) for name, p in model.named_parameters() if name.startswith(layers)}
        super().__init__(model, reads, names=names, parameters=parameters, folder=None)
        self.space = ParameterSpace(names, parameters)  # on `meta` too: what lies on the host is not counted by copies
        self._reader = _AtOnce()  # type: ignore[assignment]
        self.mode: MetaBytes | None = None
        self.vectors_elsewhere = not in_files

    def whole(self, place: int, part: torch.Tensor) -> torch.Tensor:
        """A copy: vectors lie on the host while a device computes, and in files where the host does."""
        if self.mode is None:
            return part
        with self.mode.named(VECTORS):
            return part.to(self._parameters[place].dtype, copy=True)

    def _read_rows(self, p: nn.Parameter, rows: slice | None) -> torch.Tensor:
        return self._made(p if rows is None else p.detach()[rows])

    def _made(self, p: torch.Tensor) -> torch.Tensor:
        if self.mode is None:
            return torch.empty_like(p)
        with self.mode.named(WEIGHTS):
            return torch.empty(p.shape, dtype=p.dtype, device="meta")


class _AtOnce(Executor):
    """Reads ahead in the same thread: a count sees what its own thread makes."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        done = Future[T]()
        done.set_result(work(*args, **kwargs))
        return done


def fetched_risk(
    model: nn.Module, batches: Sequence[Batch], *, names: Sequence[str], in_files: bool
) -> tuple[LayeredRisk, CountedFetch]:
    """A risk whose layers are fetched, and the residence that does it; the model is for this alone.

    `in_files`: every part of a vector lies in a file, where the host computes; else on the host, where a device does.
    """
    named = dict(model.named_parameters())
    given: dict[str, Any] = {"names": [name for name in names if name in named]}
    given["parameters"] = [named[name] for name in given["names"]]
    residence = CountedFetch(model, **given, in_files=in_files)
    return LayeredRisk(model, batches, **given, input_device=torch.device("meta"), residence=residence), residence
