"""What a product holds where weights are fetched from the host, or gathered from other processes, layer by layer.

Counted by the residence's own code on `meta`, as other products are (`working_set.py`). Of a deep model two copies
with fewer layers are counted: what is held for each layer, its values and tangents at the boundary, grows by the same
from layer to layer.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hesscli.checkpoint.bare import with_few_layers
from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.stack import Stack, UnknownStructureError, find_stack
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.curvature.sharded.chunked import ChunkedPass
from hesscli.curvature.sharded.layered import ShardedLayeredOperator
from hesscli.data import Batch
from hesscli.run.planning.fetched import VECTORS, WEIGHTS, CountedFetch, fetched_risk
from hesscli.run.planning.gathered import CountedSweeps, gathered_risk
from hesscli.run.planning.meta_bytes import MetaBytes
from hesscli.run.planning.working_set import BEYOND, EXPERTS, Work, for_all, most_positions

_DEEP = 16  # layers: from here on a quarter and an eighth of them are counted


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """Bytes at the worst moment, beside what is resident: by what they are of."""

    own: int
    """Activations, their derivatives, scores, gradients on their way, and buffers of what is sent."""
    weights: int
    """Of layers that are there for a while; those that are gathered are part of `own`."""
    vectors: int
    """Parts of vectors, likewise."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.own + self.weights + self.vectors


Counts = dict[tuple[Work, int], HeldElsewhere]
"""By product and the number of vectors at once."""
_Counted = Callable[[nn.Module, EmpiricalRisk, int], Counts]


def fetched_set(risk: EmpiricalRisk, *, num_experts: int, kinds: Set[Work], vectors: int, in_files: bool) -> Counts:
    """With weights fetched; `in_files`: where the host computes, and every vector lies in a file.

    Empty where the product is not possible or could not be counted.
    """

    def counted(model: nn.Module, risk: EmpiricalRisk, num_hit: int) -> Counts:
        fetched, residence = fetched_risk(model, risk.batches, names=risk.space.names, in_files=in_files)
        return dict(_of_fetched(fetched, residence, num_experts, num_hit, kinds, vectors))

    return _over_depth_and_experts(risk, num_experts, counted)


def gathered_set(
    risk: EmpiricalRisk, *, num_experts: int, kinds: Set[Work], vectors: int, count: int, rows: int
) -> Counts:
    """With weights sharded over `count` processes, each with so many rows of a batch; not for differences.

    Empty likewise.
    """
    batch = risk.batches[0]
    few = Batch({name: value[:rows] for name, value in batch.inputs.items()}, batch.targets[:rows])

    def counted(model: nn.Module, risk: EmpiricalRisk, num_hit: int) -> Counts:
        swept = gathered_risk(model, few, names=risk.space.names, count=count)
        return dict(_of_gathered(swept, num_experts, num_hit, kinds, vectors))

    found = _over_depth_and_experts(risk, num_experts, counted)
    if "finite-difference" in kinds:
        with suppress(UnknownStructureError, *BEYOND):
            found["finite-difference", 1] = _over_ranks(risk, few, num_experts, count)
    return found


def _over_depth_and_experts(risk: EmpiricalRisk, num_experts: int, counted: _Counted) -> Counts:
    hits = [min(hit, num_experts) for hit in EXPERTS][: 1 if num_experts <= EXPERTS[0] else None]
    try:
        found = [_over_depth(risk, counted, hit) for hit in hits]
    except (UnknownStructureError, *BEYOND):
        return {}
    return {
        key: HeldElsewhere(*(for_all([getattr(counts[key], part) for counts in found], num_experts) for part in _PARTS))
        for key in found[0]
    }


_PARTS = ("own", "weights", "vectors")


def _over_depth(risk: EmpiricalRisk, counted: _Counted, num_hit: int) -> Counts:
    model: Any = risk.model
    num_layers = len(outermost_layers(model))
    more, fewer = (with_few_layers(model, divisor=d) if num_layers >= _DEEP else None for d in (4, 8))
    if more is None or fewer is None:
        return counted(copy.deepcopy(model), risk, num_hit)
    after, before = (counted(found, risk, num_hit) for found, _ in (more, fewer))
    depths = [num_layers * share for _, share in (more, fewer)]
    out: Counts = {}
    for key, held in after.items():
        each = (held.own - before[key].own) / max(1.0, depths[0] - depths[1])
        out[key] = HeldElsewhere(held.own + max(0, int(each * (num_layers - depths[0]))), held.weights, held.vectors)
    return out


def _of_fetched(
    risk: LayeredRisk, residence: CountedFetch, num_experts: int, num_hit: int, kinds: Set[Work], vectors: int
) -> Iterator[tuple[tuple[Work, int], HeldElsewhere]]:
    def mode(stack: Stack | None) -> MetaBytes:
        residence.mode = MetaBytes(num_experts=num_experts, num_hit=num_hit, most_positions=most_positions(stack))
        return residence.mode

    with mode(None):
        stack = find_stack(risk.first_row(most=LOOKED_AT))
    given = [risk.space.zeros() for _ in range(vectors)]
    with mode(stack):
        risk.gradient()  # in which the residence sees what follows what, and reads ahead from then on
    for kind in sorted(kinds):
        if kind == "finite-difference":
            with mode(stack) as count:
                risk.gradient_along(given[0], 1.0)
            yield (kind, 1), _by_name(count, less=risk.space.vector_bytes())
            continue
        operator = LayeredOperator(risk, stack, SoftmaxCurvature() if kind == "layered-ggn" else None)
        for together in {1, vectors}:
            with mode(stack) as count:
                operator.matvecs(given[:together])
            yield (kind, together), _by_name(count, less=together * risk.space.vector_bytes())


def _by_name(count: MetaBytes, *, less: int) -> HeldElsewhere:
    weights, vectors = count.at_peak[WEIGHTS], count.at_peak[VECTORS]
    return HeldElsewhere(count.peak - weights - vectors - less, weights, vectors)


def _of_gathered(
    risk: CountedSweeps, num_experts: int, num_hit: int, kinds: Set[Work], vectors: int
) -> Iterator[tuple[tuple[Work, int], HeldElsewhere]]:
    def mode(stack: Stack | None) -> MetaBytes:
        return MetaBytes(num_experts=num_experts, num_hit=num_hit, most_positions=most_positions(stack))

    with mode(None):
        stack = risk.swept.find_stack()
    given = [risk.space.zeros() for _ in range(vectors)]
    for kind in sorted(kinds):
        if kind == "finite-difference":
            continue
        operator: Any = ShardedLayeredOperator(risk, stack, SoftmaxCurvature() if kind == "layered-ggn" else None)  # type: ignore[arg-type]
        for together in {1, vectors}:
            with mode(stack):
                operator.matvecs(given[:together])  # layers are gathered ahead from the second product on
            with mode(stack) as count:
                operator.matvecs(given[:together])
            yield (kind, together), HeldElsewhere(count.peak - together * risk.space.vector_bytes(), 0, 0)


def _over_ranks(risk: EmpiricalRisk, batch: Batch, num_experts: int, count: int) -> HeldElsewhere:
    """Differences of FSDP2's gradients, whose hooks do not run on `meta`: activations counted, buffers by formula.

    A gradient that leaves for the other ranks when its layer is done is let go of here when it is made. With w a
    layer's weights and o those outside of layers, whole from the pass forward on, the worst is the head (one w, the
    buffer of the last layer's gather), or the first layers of the pass back (three: the buffer, what was copied out of
    it, and gradients), or its end (four, one of them to be sent, o's gradient, and the shards of the gradient but for
    two layers'). Seen with torch 2.13. A displacement holds two copies of the shards, and a difference four vectors.
    """
    model: Any = copy.deepcopy(risk.model)
    named = dict(model.named_parameters())
    chosen = {name: named[name] for name in risk.space.names}
    device = torch.device("meta")
    here = EmpiricalRisk(model, [batch], names=list(chosen), parameters=list(chosen.values()), input_device=device)
    with MetaBytes(num_experts=num_experts, num_hit=min(num_experts, EXPERTS[0]), most_positions=1 << 62):
        stack = find_stack(here.first_row(most=LOOKED_AT))
    hit = min(num_experts, EXPERTS[0])
    with MetaBytes(num_experts=num_experts, num_hit=hit, most_positions=most_positions(stack)) as held:
        loss = _loss(here, stack)
        head, left = held.peak, held.live
        for p in chosen.values():
            p.register_post_accumulate_grad_hook(_let_go)
        loss.backward()
    layers = [_bytes(layer.parameters()) for layer in outermost_layers(model).values()]
    layer, outside = max(layers), _bytes(model.parameters()) - sum(layers)
    selected = _bytes(chosen.values())
    shards = selected * max(0, len(layers) - 2) // len(layers) // count
    own = max(head + outside + layer, held.peak, left + outside + 3 * layer, shards + 2 * outside + 4 * layer)
    return HeldElsewhere(own + 2 * selected // count + 4 * here.space.vector_bytes() // count, 0, 0)


def _loss(risk: EmpiricalRisk, stack: Stack) -> torch.Tensor:
    batch = risk.batches[0]
    if stack.token_inputs and len(stack.chunks(batch.targets.flatten())) > 1:
        return ChunkedPass(risk.model, stack).loss(risk.inputs(batch), batch)
    return risk.batch_loss(batch)


def _let_go(p: torch.Tensor) -> None:
    p.grad = None


def _bytes(parameters: Iterable[torch.Tensor]) -> int:
    return sum(p.nbytes for p in parameters)
