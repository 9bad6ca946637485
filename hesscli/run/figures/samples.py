"""The draws behind a report's figures, for comparisons draw by draw."""

from collections.abc import Sequence

from hesscli.curvature.selection import Block
from hesscli.linalg.space import ParameterVector
from hesscli.linalg.statistics import Estimate, pseudo_values
from hesscli.probes.blockdiag import BlockDiagonal
from hesscli.probes.density import Density
from hesscli.probes.trace import Trace
from hesscli.report.schema import Metric, Samples
from hesscli.run.figures.pairs import Spread

Draws = dict[str, Samples]


def trace_samples(result: Trace[ParameterVector], blocks: Sequence[Block], *, independent: bool) -> Draws:
    """Trace, mean eigenvalue and the blocks' traces by probe; none where they are exact.

    Nor where draws depend on each other, as xtrace's do: Student's interval over them is too narrow.
    """
    if not independent:
        return {}
    found = _moments(result.trace, result.dimension)
    for block, estimate in zip(blocks, result.blocks, strict=False):
        found |= _named(f"blocks.{block.name}.trace", estimate.draws)
    return found


def density_samples(result: Density) -> Draws:
    """Trace and mean eigenvalue by probe."""
    return _moments(result.trace, result.dimension)


def blockdiag_samples(result: BlockDiagonal, blocks: Sequence[Block]) -> Draws:
    """Relative error and cosine by probe: means over the blocks that have any product, and of each block.

    They are ratios of means over probes, so a probe's draw is the jackknife's pseudo-value.
    """
    found: Draws = {}
    for name, figures in (("relative_error", result.relative_error), ("cosine", result.cosine)):
        if figures.without.shape[0] < 2:
            continue
        alive = figures.alive
        if alive.any():
            mean, without = float(figures.values[alive].mean()), figures.without[:, alive].mean(axis=1)
            found |= _named(name, pseudo_values(mean, without).tolist())
        for i, block in enumerate(blocks):
            if alive[i]:
                draws = pseudo_values(float(figures.values[i]), figures.without[:, i])
                found |= _named(f"blocks.{block.name}.{name}", draws.tolist())
    return found


def pair_samples(metrics: dict[str, Metric], spread: Spread) -> Draws:
    """The outermost eigenvalues, each at its fixed eigenvector, with one group of rows left out."""
    if not spread.without_one:
        return {}
    ends = {"lambda_max": spread.without_one[0], "lambda_min": spread.without_one[-1]}
    return {name: Samples(data=rows.tolist()) for name, rows in ends.items() if name in metrics}


def _moments(trace: Estimate, dimension: int) -> Draws:
    return _named("trace", trace.draws) | _named("mean_eigenvalue", [draw / dimension for draw in trace.draws])


def _named(name: str, draws: Sequence[float]) -> Draws:
    return {name: Samples(probe=list(draws))} if len(draws) > 1 else {}
