"""Weights that are sharded over processes, on `meta`: one of them as it is, the others in name alone.

The residence's own code gathers and sends; here a collective makes its buffers, and nothing is sent. From the second
product on a layer is gathered while another computes: with one vector that layer's weights, in ten layers of
Llama-3-70B over eight 3.2 GiB of 26.6 with 8 rows to a process, and 18.4 with one row. A product of four vectors has
four layer's parts, and results on their way, at once: 50 GiB.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from hesscli.checkpoint.sharding import without_weights
from hesscli.curvature.sharded.swept import SweptRisk
from hesscli.data import Batch
from hesscli.distributed import Ranks
from hesscli.linalg.space import ParameterSpace, Shards

T = TypeVar("T")


class CountedRanks(Ranks):
    """The first of several processes that hold no data: what it knows stands for all."""

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Its own."""
        return values

    def each(self, value: T) -> list[T]:
        """Its own, for every rank."""
        return [value] * self.size

    def agreed(self, value: T) -> T:
        """Its own."""
        return value

    def gather_into(self, gathered: torch.Tensor, own: torch.Tensor) -> Callable[[], object]:  # noqa: ARG002
        """Buffers are there, and nothing is sent."""
        return lambda: None

    def reduce_into(self, own: torch.Tensor, sent: torch.Tensor) -> Callable[[], object]:  # noqa: ARG002
        """Likewise."""
        return lambda: None


@dataclass(frozen=True, slots=True)
class CountedSweeps:
    """What a layered product over processes asks of a risk."""

    swept: SweptRisk
    space: ParameterSpace
    passes: Sequence[Batch]
    num_terms: int


def gathered_risk(model: nn.Module, batch: Batch, *, names: Sequence[str], count: int) -> CountedSweeps:
    """A model as the first of `count` processes sweeps it over a batch of its own; all weights are put into it."""
    device = torch.device("meta")
    ranks = CountedRanks(0, count, device)
    shards = {name: p.detach()[ranks.rows(len(p))] for name, p in model.named_parameters()}
    chosen = [name for name in names if name in shards]
    whole = dict(model.named_parameters())
    shapes = [tuple(whole[name].shape) for name in chosen]
    space = ParameterSpace(chosen, [shards[name].clone() for name in chosen], shards=Shards(ranks, shapes))
    swept = SweptRisk(without_weights(model), [batch], shards=shards, space=space, input_device=device)
    return CountedSweeps(swept, space, [batch], max(1, batch.num_terms))
