"""An operator that counts and times its products, so that neither product nor probe has to."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterSpace, ParameterVector
from hesscli.run.journal import Journal, Made
from hesscli.run.storage.product_log import ProductLog


class ObservedOperator:
    """The operator given, with a count of products and the seconds they took.

    With a log, products that an earlier process made are taken from it; an operator with a `memory` of its products
    gets it back by `recall`. A journal has a line of each.
    """

    def __init__(
        self,
        operator: LinearOperator[ParameterVector],
        space: ParameterSpace,
        *,
        log: ProductLog | None,
        journal: Journal | None = None,
    ) -> None:
        self._operator, self._space, self.log, self.journal = operator, space, log, journal
        self.num_matvecs = self.num_replayed = 0
        self.seconds = 0.0

    @property
    def space(self) -> ParameterSpace:
        """The operator's space."""
        return self._space

    @property
    def observed(self) -> LinearOperator[ParameterVector]:
        """The operator itself, whose products nobody counts."""
        return self._operator

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """H v, counted."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """H v for each v, counted one by one."""
        if self.log is not None and (found := self.log.take(vs)) is not None:
            products, memory = found
            if memory:
                self._operator.recall(memory)  # type: ignore[attr-defined]
            self.num_matvecs += len(vs)
            self.num_replayed += len(vs)
            self._note(Made(vs, products, None))
            return products
        start = self._now()
        products = self._operator.matvecs(vs)
        seconds = self._now() - start
        self.seconds += seconds
        self.num_matvecs += len(vs)
        self._note(Made(vs, products, seconds))
        if self.log is not None:
            self.log.add(vs, products, getattr(self._operator, "memory", {}))
        return products

    @contextmanager
    def counted(self, products: int) -> Iterator[None]:
        """Count what runs inside as so many products."""
        start = self._now()
        yield
        seconds = self._now() - start
        self.seconds += seconds
        self.num_matvecs += products
        if self.journal is not None:
            self.journal.counted(products, seconds)

    def _note(self, made: Made) -> None:
        if self.journal is not None and made.inputs:
            self.journal.made(made)

    def _now(self) -> float:
        for device in {d for d in self._space.devices if d.type == "cuda"}:
            torch.cuda.synchronize(device)
        return time.perf_counter()
