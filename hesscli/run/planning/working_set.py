"""What each product holds of its own: beside weights, the vectors that go in and the results that come out.

Counted by running the product itself on a model without weights, so it is the product's own code that is asked, for
any architecture. It is the memory of tensors: what a device's allocator and its kernels take besides is not in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import Stack, UnknownStructureError, find_stack
from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.run.planning.meta_bytes import MetaBytes

Work = Literal["gradient", "graph-kept", "double-backward", "layered", "finite-difference", "jacobian", "layered-ggn"]
# Experts of a mixture that run in a count, each about 15 operations. What the bytes grow by from the one number to the
# other, one expert's share of a layer's gradient each, they grow by for every expert more.
EXPERTS = 8, 16
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
    """What a batch costs in memory, by product; what could not be counted has a reason instead."""

    held: dict[Work, Held]
    reasons: dict[Work, str]
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
    few = [_Counter(risk, num_experts, min(count, num_experts), vectors) for count in EXPERTS]
    counters = few[:1] if num_experts <= EXPERTS[0] else few
    held, reasons = dict[Work, Held](), dict[Work, str]()
    for kind in ("gradient", *kinds):
        try:
            found = [counter.count(kind) for counter in counters]
        except UnknownStructureError as reason:
            reasons[kind] = str(reason)
        except BEYOND as error:
            reasons[kind] = " ".join(str(error).split())[:120] or type(error).__name__
        else:
            parts = zip(*((h.own, h.graph, h.further) for h in found), strict=True)
            held[kind] = Held(*(for_all(list(part), num_experts) for part in parts))
    try:
        saved, found_scores = counters[0].forward()
    except BEYOND:
        saved = found_scores = 0
    positions = max(1, risk.batches[0].targets.numel())
    share = min(1.0, (counters[0].chunk or positions) / positions)
    return WorkingSet(held, reasons, saved, found_scores, int(found_scores * share))


def most_positions(stack: Stack | None) -> int:
    """How many loss terms are looked at: three chunks of a head that takes tokens by chunks, all of them else."""
    if stack is None or not stack.token_inputs:
        return 1 << 62
    return 3 * _chunk(stack)


def _chunk(stack: Stack) -> int:
    return len(stack.chunks(torch.arange(1 << 16))[0])


def for_all(counts: list[int], num_experts: int) -> int:
    """What it is with every expert, from counts with a few of them."""
    if len(counts) == 1:
        return counts[0]
    fewer, more = (min(n, num_experts) for n in EXPERTS)
    return counts[1] + max(0, counts[1] - counts[0]) * (num_experts - more) // max(1, more - fewer)


class _Counter:
    """Runs one product after the other under a count."""

    def __init__(self, risk: EmpiricalRisk, num_experts: int, num_hit: int, vectors: int) -> None:
        self._risk, self._num_experts, self._hit, self._vectors = risk, num_experts, num_hit, vectors
        self._most_positions = most_positions(None)
        self._gradient: int | None = None
        self._stack: Stack | None = None
        self._missing = ""
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

    def count(self, kind: Work) -> Held:
        """One product, or the gradient. Raises whatever the model's code does, and UnknownStructureError."""
        space = self._risk.space
        if kind == "gradient":
            return Held(self._gradient_peak())
        if kind == "finite-difference":
            return Held(self._differences())
        if kind == "graph-kept":
            return self._kept()
        operator = self._operator(kind)

        def own(vectors: int) -> int:
            given = [space.zeros() for _ in range(vectors)]
            return self._peak(lambda: operator.matvecs(given)) - vectors * space.vector_bytes()

        alone = own(1)
        if self._vectors == 1 or kind == "double-backward":  # which takes them one after the other
            return Held(alone)
        return Held(alone, further=max(0, own(self._vectors) - alone) // (self._vectors - 1))

    def _operator(self, kind: Work) -> HessianOperator | LayeredOperator | GGNOperator:
        if kind == "double-backward":
            return HessianOperator(self._risk, keep_graph=False)
        if kind == "jacobian":
            return GGNOperator(self._risk)
        if self._stack is None:
            raise UnknownStructureError(self._missing)
        return LayeredOperator(self._risk, self._stack, SoftmaxCurvature() if kind == "layered-ggn" else None)

    def _kept(self) -> Held:
        operator, given = HessianOperator(self._risk, keep_graph=True), [self._risk.space.zeros()]
        with self._mode() as mode:
            operator.matvecs(given)
            return Held(mode.peak - self._risk.space.vector_bytes(), mode.live)

    def _differences(self) -> int:
        """A gradient's, a displaced copy, the gradient at theta and at one side; two more while it calibrates.

        Weights narrower than float32 have a copy in float32 of what is not selected too.
        """
        space, model = self._risk.space, self._risk.model
        selected = {id(p) for p in self._risk.parameters}
        moved = sum(p.numel() * max(4, p.itemsize) for p in self._risk.parameters)
        widened = sum(4 * p.numel() for p in model.parameters() if p.itemsize < 4 and id(p) not in selected)
        return self._gradient_peak() + moved + widened + 4 * space.vector_bytes()

    def _gradient_peak(self) -> int:
        if self._gradient is None:
            self._gradient = self._peak(self._risk.gradient) - self._risk.space.vector_bytes()
        return self._gradient

    def forward(self) -> tuple[int, int]:
        """What a forward pass leaves for the pass back, and the bytes of its scores."""
        with self._mode() as mode, twice_differentiable_attention():
            found = scores(self._risk.model, self._risk.inputs(self._risk.batches[0]))
            return mode.live, found.nbytes

    def _mode(self) -> MetaBytes:
        return MetaBytes(num_experts=self._num_experts, num_hit=self._hit, most_positions=self._most_positions)

    def _peak(self, work: Callable[[], object]) -> int:
        with self._mode() as mode:
            work()
        return mode.peak
