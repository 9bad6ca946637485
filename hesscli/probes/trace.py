"""Trace and Frobenius norm by one of four estimators, and each block's trace with them.

All spend the same budget of products, so that they can be compared. Where a few eigenvalues dominate, the
Krylov-deflated one errs least of them; where none does, they are all Hutchinson's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.estimators.diagonal import DiagonalSums
from hesscli.linalg.estimators.hutchinson import UNIFORM, Draws, Known, Tick, krylov_part, range_part, sample
from hesscli.linalg.estimators.xtrace import LeaveOneOut, xtrace
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.statistics import Estimate, positive_estimate, trace_estimate

V = TypeVar("V")
Method = Literal["krylov", "hutchinson", "hutch++", "xtrace"]

# XTrace's draws depend on each other: as if they were independent, intervals cover 89 to 96 % of the time. With
# this factor 95 % and more over five spectra and 6 to 24 vectors.
_XTRACE_INFLATION = 1.25
# Of two vectors each is the other's whole basis, and the same miss shows in both: the trace is covered 85 % of the time
# without it, where two eigenvalues are equal and the rest zero, and 92 with it. The norm's has no bound worth the name.
_OF_TWO_VECTORS = 2.5


@dataclass(frozen=True, slots=True)
class Trace(Generic[V]):
    """Estimates over probes; blocks in the order given, none from XTrace."""

    trace: Estimate
    squared_frobenius: Estimate
    blocks: tuple[Estimate, ...]
    parts: tuple[Estimate, ...]
    """The trace of each part of the space, as the blocks."""
    diagonal: DiagonalSums[V] | None
    dimension: int
    num_basis: int
    """Products that went into the exact part."""
    num_probes: int
    """Products, and for XTrace vectors, that sampled the rest."""
    rounding: float
    """What keeping the basis in fewer digits leaves open: of the trace this share of ||H||_F, of ||H||_F^2 twice."""


def trace(
    operator: LinearOperator[V],
    *,
    method: Method,
    probes: int,
    steps: int,
    blocks: list[frozenset[int]],
    diagonal: bool,
    seed: int,
    on_event: OnEvent,
) -> Trace[V]:
    """Tr H, ||H||_F^2 = ||H Q||_F^2 + E ||H P z||^2 and the trace of each diagonal block.

    From M = probes + steps products:
    - krylov: `steps` products build the basis Q, one product a probe follows. Holds steps + 3 vectors.
    - hutchinson (Girard 1989, Hutchinson 1990): M probes and no basis. Holds 3 vectors.
    - hutch++: M // 3 products for a sketch, as many on its basis, the rest on probes. Holds M / 3 + 3 vectors.
    - xtrace: M // 2 vectors, two products each; no blocks. Holds M vectors.

    With `diagonal`, the sums for every diagonal entry, at no further product: 5 vectors more; not from xtrace.
    Raises FloatingPointError where a product is not finite.
    """
    space, budget = operator.space, probes + steps
    on_event(Started("trace", budget))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        on_event(Advanced("trace", done))

    if method == "xtrace":
        found = xtrace(operator, vectors=max(1, budget // 2), seed=seed, tick=tick)
        on_event(Finished("trace"))
        return _exchangeable(found, space.dimension, budget // 2, space.basis().rounding)
    sums = DiagonalSums(space) if diagonal else None
    known = _known(operator, method, steps, budget, seed, sums, tick)
    count = probes if method == "krylov" else max(1, budget - known.num_matvecs)
    draws = sample(operator, known, probes=count, seed=seed, diagonal=sums, tick=tick)
    on_event(Finished("trace"))
    return _deflated(known, draws, blocks, sums, space.dimension)


def basis_length(method: Method, *, probes: int, steps: int) -> int:
    """The number of vectors that the method holds beside a few."""
    budget = probes + steps
    return {"krylov": steps, "hutchinson": 0, "hutch++": budget // 3, "xtrace": budget}[method]


def _known(
    operator: LinearOperator[V],
    method: Method,
    steps: int,
    budget: int,
    seed: int,
    sums: DiagonalSums[V] | None,
    tick: Tick,
) -> Known[V]:
    if method == "hutch++":
        return range_part(operator, sketches=budget // 3, seed=seed, diagonal=sums, tick=tick)
    length = min(steps, operator.space.dimension) if method == "krylov" else 0
    return krylov_part(operator, steps=length, seed=seed, diagonal=sums, tick=tick)


def _deflated(
    known: Known[V], draws: Draws, blocks: list[frozenset[int]], sums: DiagonalSums[V] | None, dimension: int
) -> Trace[V]:
    exact = known.parts * np.ones(len(draws.sizes))
    rest = dimension - len(known.basis)
    uniform = rest >= UNIFORM

    def part(places: Iterable[int]) -> Estimate:
        inside = sorted(places)
        forms, squares = draws.parts[:, inside].sum(axis=1), draws.squares[:, inside].sum(axis=1)
        size = float(draws.sizes[inside].sum())
        share = size / dimension
        found = trace_estimate(
            0.0,
            forms,
            squares,
            # A probe that was given its mean length has no more of it to spread but that in the block's share of it.
            dimension=size * rest / dimension if uniform else size,
            share=share,
            inflation=1.0,
            uneven=(dimension - rest) * share * (1 - share) if uniform else 0.0,
        )
        return found.shifted(float(exact[inside].sum()))

    every = range(len(draws.sizes))
    return Trace(
        part(every),
        positive_estimate(known.squares, draws.full_squares, inflation=1.0, two_sided=not uniform),
        tuple(part(block) for block in blocks),
        tuple(part([i]) for i in every),
        sums,
        dimension,
        known.num_matvecs,
        len(draws.parts),
        known.skew,
    )


def _exchangeable(found: LeaveOneOut, dimension: int, vectors: int, rounding: float) -> Trace[V]:
    if found.complete:
        exact = (float(found.traces[0]), float(found.known_squares[0]))
        whole, norm = (Estimate(x, 0.0, (x, x), 0) for x in exact)
    else:
        rest, wider = dimension - vectors + 1, _XTRACE_INFLATION * (_OF_TWO_VECTORS if vectors == 2 else 1.0)
        whole = trace_estimate(found.traces, found.forms, found.squares, dimension=rest, share=1.0, inflation=wider)
        norm = positive_estimate(found.known_squares, found.full_squares, inflation=_XTRACE_INFLATION)
    return Trace(whole, norm, (), (), None, dimension, found.num_matvecs, vectors, rounding)
