"""Does the matrix act within blocks? The test of arXiv 2602.00816, section 6, and all block norms with it.

For a probe v and a block b: (Hv)_b, what the whole matrix gives there, against (H v_b)_b, what the diagonal
block alone would give. With E||(H v_b)_a||^2 = ||H_ab||_F^2 the same products give every block's norm.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.statistics import Estimate, Jackknifed, paired_estimate, positive_estimate, ratio_estimate

V = TypeVar("V")

_TOGETHER = 4  # masked vectors that are multiplied at once


@dataclass(frozen=True, slots=True)
class Coupling:
    """||H_ab||_F of all pairs of blocks, (B, B) each; errors and ends are nan for a single probe."""

    norms: np.ndarray
    errors: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class BlockDiagonal:
    """Squares and inner products by probe and block, and the norms of all blocks.

    Figures are ratios of means over probes, which estimate figures of the matrix itself. The mean of the probes'
    ratios estimates none: it changes with the number of entries that a probe happens to weigh.
    """

    differences: np.ndarray
    """(probes, blocks): ||(Hv)_b - (H v_b)_b||^2."""
    inners: np.ndarray
    """(probes, blocks): (Hv)_b.(H v_b)_b."""
    rows: np.ndarray
    """(probes, blocks): ||(Hv)_b||^2, a draw of the sum of ||H_ba||_F^2 over a."""
    squared_norms: np.ndarray
    """(probes, B, B): ||(H v_b)_a||^2 at [a, b], an unbiased draw of ||H_ab||_F^2."""
    linearity: np.ndarray
    """(probes,): ||Hv - sum_b H v_b|| / ||Hv||; 0 but for the product's own noise."""

    @property
    def relative_error(self) -> Jackknifed:
        """||(Hv)_b - (H v_b)_b|| / ||(Hv)_b|| by block; 0 where curvature stays within it.

        The root of the share of ||H||_F^2 in a block's rows that is outside the block.
        """
        return _ratios(np.sqrt, self.differences, self.rows)

    @property
    def cosine(self) -> Jackknifed:
        """Between (Hv)_b and (H v_b)_b by block; about 1/sqrt(B) where there is no block structure.

        The root of the share of ||H||_F^2 in a block's rows that is inside the block.
        """
        # Where the block alone gives nothing it explains nothing: 0, and not left out of the mean.
        own = np.diagonal(self.squared_norms, axis1=1, axis2=2)
        return _ratios(_cosine, self.inners, self.rows, own)

    @property
    def relative_errors(self) -> np.ndarray:
        """(probes, blocks): of each probe alone, as in the paper."""
        return np.stack([_ratio(np.sqrt, d, r) for d, r in zip(self.differences, self.rows, strict=True)])

    @property
    def cosines(self) -> np.ndarray:
        """(probes, blocks): of each probe alone, as in the paper."""
        own = np.diagonal(self.squared_norms, axis1=1, axis2=2)
        return np.stack([_ratio(_cosine, *one) for one in zip(self.inners, self.rows, own, strict=True)])

    @property
    def off_block_fraction(self) -> Estimate:
        """The share of ||H||_F^2 outside the diagonal blocks, a ratio of means over probes."""
        whole = self.squared_norms.sum(axis=(1, 2))
        inside = np.trace(self.squared_norms, axis1=1, axis2=2)
        return ratio_estimate(whole - inside, whole)

    def share(self, block: int) -> Estimate:
        """||H_bb||_F^2 over that of the block's rows, a ratio of means: about cosine^2 and 1 - relative error^2."""
        return ratio_estimate(self.squared_norms[:, block, block], self.rows[:, block])

    def coupling(self) -> Coupling:
        """||H_ab||_F symmetrised, with intervals on the log scale.

        The draws from v_a and from v_b are independent, so the off-diagonal variance halves.
        """
        draws = self.squared_norms
        count = draws.shape[1]
        figures = np.empty((4, count, count))
        for a in range(count):
            for b in range(a + 1):
                found = (
                    positive_estimate(0.0, draws[:, a, a], inflation=1.0)
                    if a == b
                    else paired_estimate(draws[:, a, b], draws[:, b, a])
                )
                norm = float(np.sqrt(found.value))
                low, high = found.ci if found.ci is not None else (np.nan, np.nan)
                error = np.nan if found.stderr is None else found.stderr / max(2 * norm, 1e-300)
                figures[:, a, b] = figures[:, b, a] = norm, error, np.sqrt(max(0.0, low)), np.sqrt(high)
        return Coupling(*figures)


def blockdiag(
    operator: LinearOperator[V], *, blocks: list[frozenset[int]], probes: int, seed: int, on_event: OnEvent
) -> BlockDiagonal:
    """Probes v of independent signs, B + 1 products each, of which those of blocks cost about half.

    Holds 4 vectors, and 2 for each block that is asked for together with others.

    Raises FloatingPointError where a product is not finite.
    """
    space, count = operator.space, len(blocks)
    differences, inners = np.empty((probes, count)), np.empty((probes, count))
    squares, linearity = np.empty((probes, count, count)), np.empty(probes)
    rows = np.empty((probes, count))
    members = [sorted(block) for block in blocks]
    on_event(Started("blockdiag", probes * (count + 1)))
    for i in range(probes):
        v = space.random("rademacher", seed=seed, index=i)
        whole = operator.matvec(v)
        whole_squares = space.inners(whole, whole)
        if not np.isfinite(whole_squares.sum()):
            msg = "a product is not finite"
            raise FloatingPointError(msg)
        rows[i] = [whole_squares[m].sum() for m in members]
        rest = space.copy(whole)
        for b, masked in enumerate(_masked_products(operator, v, blocks)):
            own, cross = space.inners(masked, masked), space.inners(whole, masked)
            squares[i, :, b] = [own[m].sum() for m in members]
            space.axpy(-1.0, masked, rest)
            inners[i, b] = cross[members[b]].sum()
            # ||x - y||^2 from its three inner products would lose what a relative error near 0 consists of.
            space.axpy(-1.0, whole, masked)
            differences[i, b] = space.inners(masked, masked)[members[b]].sum()
            on_event(Advanced("blockdiag", i * (count + 1) + b + 2))
        norm = np.sqrt(whole_squares.sum())
        linearity[i] = space.norm(rest) / norm if norm > 0 else 0.0
    on_event(Finished("blockdiag"))
    return BlockDiagonal(differences, inners, rows, squares, linearity)


def _ratio(form: Callable[..., np.ndarray], top: np.ndarray, rows: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """The figure of sums (..., blocks); nan where a block's rows have no product."""
    alive = rows > 0
    below = np.where(alive, rows, 1.0)
    return np.where(alive, form(top / below, *(other / below for other in others)), np.nan)


def _cosine(inner: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.where(own > 0, inner / np.sqrt(np.where(own > 0, own, 1.0)), 0.0)


def _ratios(form: Callable[..., np.ndarray], *draws: np.ndarray) -> Jackknifed:
    """The figure of the sums over probes, and of the sums with one probe left out."""

    def figure(kept: np.ndarray) -> np.ndarray:
        return _ratio(form, *(d[kept].sum(axis=0) for d in draws))

    every = np.arange(len(draws[0]))
    return Jackknifed(figure(every), np.stack([figure(np.delete(every, i)) for i in every]), form is _cosine)


def _masked_products(operator: LinearOperator[V], v: V, blocks: list[frozenset[int]]) -> Iterator[V]:
    """H v_b for each block, some at a time: what does not depend on the vector is computed once for them."""
    for start in range(0, len(blocks), _TOGETHER):
        masked = [operator.space.restrict(v, block) for block in blocks[start : start + _TOGETHER]]
        yield from operator.matvecs(masked)
