"""What each product holds of its own: beside weights, the vectors that go in and the results that come out.

Counted by running the product itself on a model without weights, so it is the product's own code that is asked, for
any architecture. It is the memory of tensors: what a device's allocator and its kernels take besides is not in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from hesscli.checkpoint.spread import Homes, at_home
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import Stack, UnknownStructureError, find_stack
from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.run.planning.counting.course import Course, extended
from hesscli.run.planning.counting.meta_bytes import MetaBytes
from hesscli.run.planning.counting.regions import Regions
from hesscli.run.planning.counting.sites import Mark, Sites

Work = Literal["gradient", "graph-kept", "double-backward", "layered", "finite-difference", "jacobian", "layered-ggn"]
COUNTED = 3  # vectors at once, at most: what is held grows by the same for each one more
# What a model's own code raises where it meets a tensor without data in a way that no rule answers.
BEYOND = (NotImplementedError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes at the worst moment of one product, beside weights and vectors in and out."""

    own: int
    """Activations, their derivatives, scores, and gradients that are not yet added up."""
    graph: int = 0
    """What stays between products, for each batch of this size."""
    further: int = 0
    """More than `own` for each further vector that is multiplied at once."""


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """What a batch costs in memory on one device, by product; what could not be counted has a reason instead."""

    held: Mapping[Work, Held]
    reasons: Mapping[Work, str]
    activations: int
    """What autograd saves of one forward pass over a batch, scores included; 0 where it could not be counted."""
    scores: int
    """One tensor of scores of a batch, (rows, positions, classes)."""
    score_chunk: int
    """The same of the tokens that the head takes at a time; of a batch where it does not take them one by one."""


def working_set(risk: EmpiricalRisk, *, num_experts: int, kinds: tuple[Work, ...], vectors: int) -> WorkingSet:
    """Count the gradient and products of a risk whose model lies on `meta`; its first batch stands for all.

    Of up to `vectors` at once. Takes seconds, and no memory.
    """
    homes = at_home(risk.model)
    return working_sets(risk, homes, num_experts=num_experts, kinds=kinds, vectors=vectors)[0]


def working_sets(
    risk: EmpiricalRisk, homes: Homes, *, num_experts: int, kinds: tuple[Work, ...], vectors: int
) -> list[WorkingSet]:
    """The same for each device of a model that is spread over some."""

    def prepared(model: nn.Module, mark: Mark, hit: int) -> _Counter:
        return _Counter(_risk_on(model, risk), mark(model), num_experts=num_experts, num_hit=hit, vectors=vectors)

    sites = Sites(risk.model, homes, num_experts=num_experts, ends=1, prepare=prepared)
    found, reasons = dict[Work, dict[str, np.ndarray]](), dict[Work, str]()
    for kind in ("gradient", *kinds):
        try:
            found[kind] = sites.worst(lambda counter, kind=kind: counter.count(kind))  # type: ignore[misc]
        except UnknownStructureError as reason:
            reasons[kind] = str(reason)
        except BEYOND as error:
            reasons[kind] = " ".join(str(error).split())[:120] or type(error).__name__
    try:
        saved = sites.worst(lambda counter: counter.forward())["saved"][:, 0]
        found_scores = sites.first.scores
    except BEYOND:
        saved, found_scores = np.zeros(homes.count, np.int64), 0
    positions = max(1, risk.batches[0].targets.numel())
    share = min(1.0, (sites.first.chunk or positions) / positions)
    return [
        WorkingSet(
            {kind: _held(kind, parts, device, risk, homes, vectors) for kind, parts in found.items()},
            reasons,
            int(saved[device]),
            found_scores,
            int(found_scores * share),
        )
        for device in range(homes.count)
    ]


def most_positions(stack: Stack | None) -> int:
    """How many loss terms are looked at: three chunks of a head that takes tokens by chunks, all of them else."""
    if stack is None or not stack.token_inputs:
        return 1 << 62
    return 3 * _chunk(stack)


def _chunk(stack: Stack) -> int:
    return len(stack.chunks(torch.arange(1 << 16))[0])


def chosen_of(model: nn.Module) -> list[str]:
    """The names of what is selected of a model that was copied."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def _risk_on(model: nn.Module, risk: EmpiricalRisk) -> EmpiricalRisk:
    """A risk on a copy of a model, over what is selected of it."""
    named = dict(model.named_parameters())
    names = chosen_of(model)
    return EmpiricalRisk(
        model,
        risk.batches,
        names=names,
        parameters=[named[name] for name in names],
        input_device=risk.input_device,
    )


def _held(
    kind: Work, parts: Mapping[str, np.ndarray], device: int, risk: EmpiricalRisk, homes: Homes, vectors: int
) -> Held:
    own, graph, several = (int(parts[name][device, 0]) if name in parts else 0 for name in ("own", "graph", "several"))
    if kind == "finite-difference":
        own += _displaced(risk, homes, device)
    further = max(0, several - own) // (vectors - 1) if several else 0
    return Held(own, graph, further)


def _displaced(risk: EmpiricalRisk, homes: Homes, device: int) -> int:
    """A displaced copy, the gradient at theta and at one side; two more while it calibrates.

    Weights narrower than float32 have a copy in float32 of what is not selected too.
    """
    named = [(p, homes.parameters.get(name, 0)) for name, p in risk.model.named_parameters()]
    here = [p for p, home in named if home == device]
    moved = sum(p.numel() * max(4, p.itemsize) for p in here if p.requires_grad)
    widened = sum(4 * p.numel() for p in here if p.itemsize < 4 and not p.requires_grad)
    vector = sum(p.numel() for p in here if p.requires_grad) * torch.empty(0, dtype=risk.space.dtype).itemsize
    return moved + widened + 4 * vector


class _Counter:
    """Runs one product after the other under a count."""

    def __init__(self, risk: EmpiricalRisk, regions: Regions, *, num_experts: int, num_hit: int, vectors: int) -> None:
        self._risk, self._regions, self._vectors = risk, regions, vectors
        self._num_experts, self._hit = num_experts, num_hit
        self._most_positions = most_positions(None)
        self._gradient: Course | None = None
        self._stack: Stack | None = None
        self._missing = ""
        self.scores = 0
        """The bytes of a batch's scores, once `forward` has run."""
        try:
            with self._mode():
                self._stack = find_stack(risk.first_row(most=LOOKED_AT))
        except (UnknownStructureError, *BEYOND) as reason:
            self._missing = " ".join(str(reason).split())[:120]
        self.chunk: int | None = None
        """Positions that the head takes at a time, None where it takes a batch at once."""
        if self._stack is not None and self._stack.token_inputs:
            self.chunk = _chunk(self._stack)
        self._most_positions = most_positions(self._stack)

    def count(self, kind: Work) -> dict[str, Course]:
        """One product, or the gradient. Raises whatever the model's code does, and UnknownStructureError."""
        if kind in ("gradient", "finite-difference"):
            if self._gradient is None:
                self._gradient = self._course(self._risk.gradient, results=1)
            return {"own": self._gradient}
        if kind == "graph-kept":
            return self._kept()
        operator = self._operator(kind)

        def own(vectors: int) -> Course:
            given = [self._risk.space.zeros() for _ in range(vectors)]
            return self._course(lambda: operator.matvecs(given), results=vectors)

        alone = {"own": own(1)}
        if self._vectors == 1 or kind == "double-backward":  # which takes them one after the other
            return alone
        few = min(self._vectors, COUNTED)
        several = extended(alone["own"], own(few), times=(self._vectors - 1) / (few - 1))
        return alone | {"several": own(self._vectors) if several is None else several}

    def _operator(self, kind: Work) -> HessianOperator | LayeredOperator | GGNOperator:
        if kind == "double-backward":
            return HessianOperator(self._risk, keep_graph=False)
        if kind == "jacobian":
            return GGNOperator(self._risk)
        if self._stack is None:
            raise UnknownStructureError(self._missing)
        return LayeredOperator(self._risk, self._stack, SoftmaxCurvature() if kind == "layered-ggn" else None)

    def _kept(self) -> dict[str, Course]:
        operator, given = HessianOperator(self._risk, keep_graph=True), [self._risk.space.zeros()]
        with self._mode() as mode:
            operator.matvecs(given)
            return {"own": self._without(mode.course, results=1), "graph": mode.left}

    def forward(self) -> dict[str, Course]:
        """What a forward pass leaves for the pass back."""
        with self._mode() as mode, twice_differentiable_attention():
            found = scores(self._risk.model, self._risk.inputs(self._risk.batches[0]))
            self.scores = found.nbytes
            return {"saved": mode.left}

    def _course(self, work: Callable[[], object], *, results: int) -> Course:
        with self._mode() as mode:
            work()
        return self._without(mode.course, results=results)

    def _without(self, course: Course, *, results: int) -> Course:
        """What comes out is made before anything else, which is said to be on the first device."""
        made = np.zeros_like(next(iter(course.values())))
        made[0, 0] = results * self._risk.space.vector_bytes()
        return {place: held - made for place, held in course.items()}

    def _mode(self) -> MetaBytes:
        return MetaBytes(
            num_experts=self._num_experts,
            num_hit=self._hit,
            most_positions=self._most_positions,
            regions=self._regions,
        )
