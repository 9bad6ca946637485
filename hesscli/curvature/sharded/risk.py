"""The empirical risk of a model that FSDP2 has sharded: every rank's rows, every rank's part of the weights.

A gradient is one pass of FSDP2 forward and back on each rank's rows: two all-gathers of the weights and one
reduce-scatter of their gradients, layer by layer; many scores are taken by chunks of tokens (`chunked.py`). A finite
difference is FSHP's (arXiv 2602.00816, Algorithm 1): each rank moves its own shard, and nothing is sent but what two
gradients send, and scalars.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hesscli.curvature.layers.layered_risk import Watch
from hesscli.curvature.layers.stack import Stack, UnknownStructureError
from hesscli.curvature.losses import cross_entropy, scores, twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.sharded.chunked import ChunkedPass
from hesscli.curvature.sharded.rows import FILLER, own_batches
from hesscli.curvature.sharded.swept import SweptRisk
from hesscli.data.slice import IGNORED, Batch
from hesscli.distributed import Ranks
from hesscli.errors import UsageError
from hesscli.linalg.space import ParameterSpace, ParameterVector, Shards


class ShardedRisk(EmpiricalRisk):
    """A risk over processes: `batches` are all rows, of which each rank runs its own; `parameters` are its shards.

    Every method is for all ranks together, and what comes back is the same on each, or its part of the same vector.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        names: Sequence[str],
        parameters: Sequence[nn.Parameter],
        input_device: torch.device,
        ranks: Ranks,
        bare: nn.Module,
    ) -> None:
        """`bare` is the same model without weights and without hooks, which layered sweeps run."""
        self._ranks, self._sharded = ranks, tuple(parameters)
        super().__init__(model, batches, names=names, parameters=parameters, input_device=input_device)
        self._places = {name: i for i, name in enumerate(names)}
        shards = [_local(p) for p in parameters]
        self.parameters = tuple(nn.Parameter(shard, requires_grad=False) for shard in shards)
        self.space = ParameterSpace(names, shards, shards=Shards(ranks, [tuple(p.shape) for p in parameters]))
        whole = {name: _local(p) for name, p in model.named_parameters()}
        self.swept = SweptRisk(bare, batches, shards=whole, space=self.space, input_device=input_device)
        """What layered sweeps run; the batches of this one stay the first ones, and nobody runs them."""

    def _take(self, batches: Sequence[Batch]) -> None:
        super()._take(batches)
        self.passes = own_batches(batches, self._ranks)

    def terms(self, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The loss at each position of a batch that all ranks have, (rows, positions), without a graph.

        Every rank runs all of it, and the first one's numbers count. `weights` by name are whole.
        """
        given = {self._places[name]: weight for name, weight in (weights or {}).items()}
        shards = {i: w[self._ranks.rows(len(w))] for i, w in given.items()}
        with self._replaced(shards):
            found = self._terms(batch)
        return torch.from_numpy(self._ranks.agreed(found.cpu().numpy())).to(found.device)

    def _terms(self, batch: Batch) -> torch.Tensor:
        stack = self._by_tokens(batch)
        if stack is not None:
            found = ChunkedPass(self.model, stack).terms(self.inputs(batch), batch)
        else:
            with torch.no_grad():
                found = self._loss_terms(batch)
        self._reshard()
        return found

    def _by_tokens(self, batch: Batch) -> Stack | None:
        """As in one process, but that all ranks look for the stack together, whatever their rows are."""
        if all(b.targets.shape[1] == 1 for b in self.batches) or self._stack is None:
            return None
        return super()._by_tokens(batch)

    @cached_property
    def _stack(self) -> Stack | None:
        try:
            return self.swept.find_stack()
        except UnknownStructureError:
            return None

    def _batch_loss(self, batch: Batch) -> torch.Tensor:
        stack = self._by_tokens(batch)
        if stack is not None:
            return ChunkedPass(self.model, stack).loss(self.inputs(batch), batch)
        return self._loss_terms(batch).sum()

    def _loss_terms(self, batch: Batch) -> torch.Tensor:
        found = scores(self.model, self.inputs(batch))
        return cross_entropy(found.flatten(0, 1), batch.targets.flatten()).view(batch.targets.shape)

    def _row_losses(self) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        with twice_differentiable_attention():
            for batch in self.passes:
                sums = self._terms(batch).sum(dim=1, dtype=torch.float64).cpu().numpy()
                counts = (batch.targets != IGNORED).sum(dim=1).numpy()
                numbers = batch.first_row + np.arange(len(counts))
                rows.append(np.stack([numbers, sums, counts], axis=1))
        every = np.concatenate(self._ranks.each(np.concatenate(rows)))
        data = every[every[:, 0] != FILLER]
        return data[:, 1], data[:, 2]

    def gradient(self) -> ParameterVector:
        """This rank's part of the gradient of the mean loss."""
        with twice_differentiable_attention():
            return self._gradient()

    def gradient_along(self, v: ParameterVector, alpha: float, watch: Watch = nullcontext) -> ParameterVector:
        """The same at theta + alpha v, with fused attention too; holds a copy of the shards.

        The forward pass of each of this rank's batches is inside of `watch(batch)`.
        """
        with self._displaced(v, alpha):
            return self._gradient(watch)

    def loss_along(self, u: ParameterVector, step: float) -> float:
        """The mean loss at theta + step u: one forward pass; holds a copy of the shards."""
        with self._displaced(u, step):
            return self.loss().value

    def _gradient(self, watch: Watch = nullcontext) -> ParameterVector:
        total = self.space.zeros()
        for batch in self.passes:
            with nullcontext() if batch.first_row == FILLER else watch(batch):
                loss = self._batch_loss(batch)
            if loss.requires_grad:
                loss.backward()
            self._reshard()
            for part, p in zip(total, self._sharded, strict=True):
                if p.grad is not None:
                    part.add_(_local(p.grad).to(part.dtype))
                    p.grad = None
        self.space.scale(1.0 / self.num_terms, total)
        return total

    @contextmanager
    def _displaced(self, v: ParameterVector, alpha: float) -> Iterator[None]:
        if any(p.dtype not in (torch.float32, torch.float64) for p in self.parameters):
            what = "shards are moved in place, and narrow weights cannot hold a displacement"
            raise UsageError("operator.product", what, "use --dtype float32, or --product layered")
        pairs = zip(self.parameters, v, strict=True)
        with self._replaced({i: torch.add(p, part.to(p.dtype), alpha=alpha) for i, (p, part) in enumerate(pairs)}):
            yield

    @contextmanager
    def _replaced(self, shards: Mapping[int, torch.Tensor]) -> Iterator[None]:
        """For the block these are the shards; after it they are what they were, bit for bit.

        What is gathered must not outlive a change of what it was gathered from: a pass without a backward would leave
        the outermost group whole.
        """
        kept = {i: self.parameters[i].clone() for i in shards}
        try:
            self._write(shards)
            yield
        finally:
            self._write(kept)

    def _write(self, shards: Mapping[int, torch.Tensor]) -> None:
        with torch.no_grad():
            for i, shard in shards.items():
                self.parameters[i].copy_(shard)
        self._reshard()

    def _reshard(self) -> None:
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()
    return local
