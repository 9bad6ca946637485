"""What a product holds where weights are fetched from the host, or gathered from other processes, layer by layer.

Counted by the residence's own code on `meta`, as other products are (`working_set.py`).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from hesscli.checkpoint.layers import outermost_layers
from hesscli.checkpoint.spread import at_home
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.offloaded import experts_at_once
from hesscli.curvature.layers.stack import Stack, UnknownStructureError, find_stack
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.curvature.sharded.chunked import ChunkedPass
from hesscli.curvature.sharded.layered import ShardedLayeredOperator
from hesscli.data import Batch
from hesscli.run.planning.counting.course import Course, extended
from hesscli.run.planning.counting.fetched import CountedFetch, fetched_risk
from hesscli.run.planning.counting.gathered import CountedSweeps, gathered_risk
from hesscli.run.planning.counting.meta_bytes import MetaBytes
from hesscli.run.planning.counting.regions import Regions
from hesscli.run.planning.counting.sites import EXPERTS, Mark, Sites
from hesscli.run.planning.counting.working_set import BEYOND, COUNTED, Work, chosen_of, most_positions


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


S = TypeVar("S")
Counts = dict[tuple[Work, int], HeldElsewhere]
"""By product and the number of vectors at once."""


def fetched_set(risk: EmpiricalRisk, *, num_experts: int, kinds: Set[Work], vectors: int, in_files: bool) -> Counts:
    """With weights fetched; `in_files`: where the host computes, and every vector lies in a file.

    Empty where the product is not possible or could not be counted.
    """
    num_experts = experts_at_once(risk.model, of=num_experts)

    def prepared(model: nn.Module, mark: Mark, hit: int) -> _Fetched:
        regions = mark(model)
        found = fetched_risk(model, risk.batches, names=chosen_of(model), in_files=in_files)
        return _Fetched(*found, regions, num_experts, hit)

    def work(site: _Fetched) -> dict[tuple[Work, int], Course]:
        return dict(site.counted(kinds, vectors))

    return _over(risk, num_experts, vectors, prepared, work)


def gathered_set(
    risk: EmpiricalRisk, *, num_experts: int, kinds: Set[Work], vectors: int, count: int, rows: int
) -> Counts:
    """With weights sharded over `count` processes, each with so many rows of a batch; not for differences.

    Empty likewise.
    """
    batch = risk.batches[0]
    few = Batch({name: value[:rows] for name, value in batch.inputs.items()}, batch.targets[:rows])

    def prepared(model: nn.Module, mark: Mark, hit: int) -> _Gathered:
        found = gathered_risk(model, few, names=chosen_of(model), count=count)
        return _Gathered(found, mark(found.swept.model), num_experts, hit)

    def work(site: _Gathered) -> dict[tuple[Work, int], Course]:
        return dict(site.counted(kinds, vectors))

    found = _over(risk, num_experts, vectors, prepared, work)
    if "finite-difference" in kinds:
        with suppress(UnknownStructureError, *BEYOND):
            found["finite-difference", 1] = _over_ranks(risk, few, num_experts, count)
    return found


def _over(
    risk: EmpiricalRisk,
    num_experts: int,
    vectors: int,
    prepared: Callable[[nn.Module, Mark, int], S],
    work: Callable[[S], Mapping[tuple[Work, int], Course]],
) -> Counts:
    def more(site: S) -> dict[tuple[Work, int], Course]:
        """With all of the vectors, from what was counted with a few of them."""
        found = dict(work(site))
        for kind, few in list(found):
            if 1 < few < vectors:
                several = extended(found[kind, 1], found.pop((kind, few)), times=(vectors - 1) / (few - 1))
                if several is None:
                    msg = "several vectors do not go through the layers as one does"
                    raise UnknownStructureError(msg)
                found[kind, vectors] = several
        return found

    try:
        sites = Sites(risk.model, at_home(risk.model), num_experts=num_experts, ends=2, prepare=prepared)
        found = sites.worst(more)
    except (UnknownStructureError, *BEYOND):
        return {}
    return {key: _named(parts[0]) for key, parts in found.items()}


def _named(parts: np.ndarray) -> HeldElsewhere:
    everything, weights, vectors = (int(n) for n in parts)
    return HeldElsewhere(everything - weights - vectors, weights, vectors)


class _Fetched:
    """Products with fetched layers, under a count."""

    def __init__(
        self, risk: LayeredRisk, residence: CountedFetch, regions: Regions, num_experts: int, num_hit: int
    ) -> None:
        self._risk, self._residence = risk, residence
        self._given = {"num_experts": num_experts, "num_hit": num_hit}
        self._regions = regions
        with self._mode(None):
            self._stack = find_stack(risk.first_row(most=LOOKED_AT))
        with self._mode(self._stack):
            risk.gradient()  # in which the residence sees what follows what, and reads ahead from then on

    def counted(self, kinds: Set[Work], vectors: int) -> Iterator[tuple[tuple[Work, int], Course]]:
        """By product and number of vectors."""
        risk, stack = self._risk, self._stack
        given = [risk.space.zeros() for _ in range(min(vectors, COUNTED))]
        for kind in sorted(kinds):
            if kind == "finite-difference":
                with self._mode(stack) as count:
                    risk.gradient_along(given[0], 1.0)
                yield (kind, 1), _without(count.course, risk.space.vector_bytes())
                continue
            operator = LayeredOperator(risk, stack, SoftmaxCurvature() if kind == "layered-ggn" else None)
            for together in {1, min(vectors, COUNTED)}:
                with self._mode(stack) as count:
                    operator.matvecs(given[:together])
                yield (kind, together), _without(count.course, together * risk.space.vector_bytes())

    def _mode(self, stack: Stack | None) -> MetaBytes:
        mode = MetaBytes(**self._given, most_positions=most_positions(stack), regions=self._regions)
        self._residence.mode = mode
        return mode


class _Gathered:
    """Products with layers that are gathered, likewise."""

    def __init__(self, risk: CountedSweeps, regions: Regions, num_experts: int, num_hit: int) -> None:
        self._risk, self._regions = risk, regions
        self._given = {"num_experts": num_experts, "num_hit": num_hit}
        with self._mode(None):
            self._stack = risk.swept.find_stack()

    def counted(self, kinds: Set[Work], vectors: int) -> Iterator[tuple[tuple[Work, int], Course]]:
        """By product and number of vectors."""
        risk, stack = self._risk, self._stack
        given = [risk.space.zeros() for _ in range(min(vectors, COUNTED))]
        for kind in sorted(kinds - {"finite-difference"}):
            curvature = SoftmaxCurvature() if kind == "layered-ggn" else None
            operator: Any = ShardedLayeredOperator(risk, stack, curvature)  # type: ignore[arg-type]
            for together in {1, min(vectors, COUNTED)}:
                with self._mode(stack):
                    operator.matvecs(given[:together])  # layers are gathered ahead from the second product on
                with self._mode(stack) as count:
                    operator.matvecs(given[:together])
                yield (kind, together), _without(count.course, together * risk.space.vector_bytes())

    def _mode(self, stack: Stack | None) -> MetaBytes:
        return MetaBytes(**self._given, most_positions=most_positions(stack), regions=self._regions)


def _without(course: Course, results: int) -> Course:
    """What comes out is made before anything else."""
    return {place: held - [[results, 0, 0]] for place, held in course.items()}


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
