"""Trace and Frobenius norm by Girard and Hutchinson, with the trace of each block from the same products."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.statistics import Estimate, mean_estimate

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Trace:
    """Estimates over probes; blocks in the order given."""

    trace: Estimate
    squared_frobenius: Estimate
    blocks: tuple[Estimate, ...]
    dimension: int


def trace(
    operator: LinearOperator[V], *, probes: int, blocks: list[frozenset[int]], seed: int, on_event: OnEvent
) -> Trace:
    """Tr H = E z.Hz and ||H||_F^2 = E ||Hz||^2 over Rademacher z: one product a probe, 2 vectors.

    The trace of block b is E z_b.(Hz)_b. Variance: 2(||H||_F^2 - ||diag H||^2) for the trace.
    Raises FloatingPointError where a product is not finite.
    """
    space = operator.space
    parts, squares = [], []
    on_event(Started("trace", probes))
    for i in range(probes):
        z = space.random("rademacher", seed=seed, index=i)
        product = operator.matvec(z)
        parts.append(space.inners(z, product))
        squares.append(space.inner(product, product))
        if not np.isfinite(squares[-1]):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        on_event(Advanced("trace", i + 1))
    on_event(Finished("trace"))
    table = np.array(parts)
    return Trace(
        mean_estimate(table.sum(axis=1)),
        mean_estimate(np.array(squares)),
        tuple(mean_estimate(table[:, sorted(block)].sum(axis=1)) for block in blocks),
        space.dimension,
    )
