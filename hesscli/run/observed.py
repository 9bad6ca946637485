"""An operator that counts and times its products, so that neither product nor probe has to."""

import time
from collections.abc import Sequence

import torch

from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterSpace, ParameterVector


class ObservedOperator:
    """The operator given, with a count of products and the seconds they took."""

    def __init__(self, operator: LinearOperator[ParameterVector], space: ParameterSpace) -> None:
        self._operator, self._space = operator, space
        self.num_matvecs = 0
        self.seconds = 0.0

    @property
    def space(self) -> ParameterSpace:
        """The operator's space."""
        return self._space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """H v, counted."""
        return self.matvecs([v])[0]

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """H v for each v, counted one by one."""
        start = self._now()
        products = self._operator.matvecs(vs)
        self.seconds += self._now() - start
        self.num_matvecs += len(vs)
        return products

    def _now(self) -> float:
        for device in {d for d in self._space.devices if d.type == "cuda"}:
            torch.cuda.synchronize(device)
        return time.perf_counter()
