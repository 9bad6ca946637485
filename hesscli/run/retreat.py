"""When memory runs out in the middle of a run: fewer rows at a time, then a leaner product, and the same step again.

Sums over loss terms do not depend on how rows are batched, and the exact products agree: what changes is the cost, and
rounding. A run is not lost to a neighbour that took the memory, or to a batch that was too large.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch

from hesscli.curvature.batches import on_risk, split_rows
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import OuterProductOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import UnknownStructureError
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.distributed import ranks
from hesscli.errors import DoesNotFitError
from hesscli.events import OnEvent, Warned
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterSpace, ParameterVector
from hesscli.recipe import Recipe
from hesscli.run.faults import is_out_of_memory, no_memory

T = TypeVar("T")
Thing = Literal["graph", "rows", "vectors", "product"]
Step = tuple[Thing, int]
"""What is given up, and the number of rows or vectors that is left."""
RETREAT = "out-of-memory"  # the code of the warning of each step


class RetreatingOperator:
    """The operator given; where it runs out of memory it is made to need less, and the same product is made again.

    In this order: the graph that is kept between products is given up; the batches of the risk are halved, down to
    one row; a layered product takes half as many vectors at once; and the next leaner exact product takes over, with
    batches as they were. Finite differences, which are not exact, are never taken. Each step is a warning.

    `memory` and `recall` carry the steps, so that a run that goes on from its products goes on as it was.

    Raises DoesNotFitError where nothing is left to give up. Over processes it is raised at once: the others wait for
    this one in the middle of a product. Its remedy is the same command with half as many rows a batch, which goes on
    from the products of all.
    """

    def __init__(
        self, operator: LinearOperator[ParameterVector], risk: EmpiricalRisk, *, recipe: Recipe, on_event: OnEvent
    ) -> None:
        self._operator, self._risk, self._recipe, self._on_event = operator, risk, recipe, on_event
        self._whole = risk.batches
        self._rows: int | None = None
        self._most: int | None = None
        self._steps: list[Step] = []

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self._risk.space

    @property
    def risk(self) -> EmpiricalRisk:
        """What the products are of. Where it is set to another one, its batches have as few rows as these came to."""
        return self._risk

    @risk.setter
    def risk(self, risk: EmpiricalRisk) -> None:
        self._operator, self._risk, self._whole = on_risk(self._operator, risk), risk, risk.batches
        self._steps = list(self._steps)
        if self._rows is not None:
            risk.batches = tuple(split_rows(risk.batches, self._rows))

    @property
    def is_layered(self) -> bool:
        """Whether the product is layered now, whatever it was at first."""
        return isinstance(self._operator, LayeredOperator)

    @property
    def num_rows(self) -> int | None:
        """The rows of a batch that it came to, None where they are as they were."""
        return self._rows

    @property
    def memory(self) -> dict[str, Any]:
        """What an operator in another process needs to go on as this one; empty where there is nothing."""
        own: dict[str, Any] = {"retreat": list(self._steps)} if self._steps else {}
        inner = getattr(self._operator, "memory", None)
        return own | ({"inner": inner} if inner else {})

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take the steps that were taken elsewhere, and hand the operator its own memory."""
        for thing, count in memory.get("retreat", [])[len(self._steps) :]:
            self._take((thing, count))
        if "inner" in memory:
            self._operator.recall(memory["inner"])  # type: ignore[attr-defined]

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """H v, as often as it takes."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """H v for each v. Holds as many results as vectors."""
        return self._repeated(lambda: self._products(vs), num_vectors=len(vs))

    def patiently(self, work: Callable[[], T]) -> T:
        """What `work` on the same risk returns, a gradient say; where memory runs out the same is given up for it."""
        return self._repeated(work, num_vectors=1)

    def _products(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        most = self._most or max(1, len(vs))
        return [p for start in range(0, len(vs), most) for p in self._operator.matvecs(vs[start : start + most])]

    def _repeated(self, work: Callable[[], T], *, num_vectors: int) -> T:
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if ranks().size > 1:
                    raise self._for_all() from error
            # Only out here: the error holds the frames that it passed through, and those hold their tensors.
            free_memory()
            if (step := self._next(num_vectors)) is None or not self._take(step):
                what = "nothing is left to give up: one row at a time, by the leanest exact product"
                raise no_memory(what)

    def _for_all(self) -> DoesNotFitError:
        rows, each = self._largest(), ranks().size
        if rows <= each:  # one row on each rank
            return no_memory("the product does not fit")
        what = f"the product does not fit with {rows} rows a batch"
        return DoesNotFitError("memory", what, f"add --batch-size {max(each, rows // 2)}: products so far are kept")

    def _next(self, num_vectors: int) -> Step | None:
        if isinstance(self._operator, HessianOperator) and self._operator.keep_graph:
            return "graph", 0
        if (rows := self._largest()) > 1:
            return "rows", rows // 2
        if self.is_layered and (together := min(num_vectors, self._most or num_vectors)) > 1:
            return "vectors", together // 2
        leaner = isinstance(self._operator, HessianOperator | OuterProductOperator)
        return ("product", 0) if leaner and self._recipe.operator.product == "auto" else None

    def _take(self, step: Step) -> bool:
        """Give up one thing; False where it cannot be done."""
        thing, count = step
        if thing == "graph":
            self._operator = HessianOperator(self._risk, keep_graph=False)
            self._say("the graph is made again for each product")
        elif thing == "rows":
            self._rows, self._risk.batches = count, tuple(split_rows(self._whole, count))
            self._say(f"batches have {count} {'row' if count == 1 else 'rows'} from here on")
        elif thing == "vectors":
            self._most = count
            self._say(f"{count} {'vector is' if count == 1 else 'vectors are'} multiplied at once from here on")
        elif not self._go_layered():
            return False
        self._steps.append(step)
        free_memory()
        return True

    def _go_layered(self) -> bool:
        kind, seed = self._recipe.operator.kind, self._recipe.estimator.seed
        self._risk.batches, self._rows = self._whole, None
        try:
            choice = choose_operator(self._risk, kind=kind, product="layered", seed=seed)
        except UnknownStructureError:
            return False
        if choice.product != "layered":
            return False
        self._operator = choice.operator
        self._say("the product is layered from here on")
        return True

    def _largest(self) -> int:
        return max(len(batch.targets) for batch in self._risk.batches)

    def _say(self, what: str) -> None:
        self._on_event(Warned(RETREAT, f"memory ran out: {what}"))


def free_memory() -> None:
    """Let go of what nothing refers to, and of what allocators keep for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
