"""What the rows of a slice do to the figures of the block test, and to the form of a linear solve."""

from collections.abc import Sequence

import numpy as np

from hesscli.events import Advanced, Finished, OnEvent, Started
from hesscli.linalg.solvers.solution import Solution
from hesscli.linalg.space import ParameterVector
from hesscli.report import schema
from hesscli.run.figures.data_error import SEED_OFFSET, Groups, add_data
from hesscli.run.observed import ObservedOperator

_TOGETHER = 4  # vectors that are multiplied at once, as in the probe itself
BLOCK_METRICS = ("relative_error", "cosine", "off_block_fraction")


def block_squares_without_one(
    groups: Groups, operator: ObservedOperator, parts: Sequence[frozenset[int]], *, seed: int, on_event: OnEvent
) -> np.ndarray:
    """||(H v_b)_a||^2 at [., a, b] for one probe v: of the slice first, then with each group left out.

    (groups + 1, B, B). 2 B products, and 12 vectors held.
    """
    space = groups.subject.risk.space
    v = space.random("rademacher", seed=seed, index=SEED_OFFSET)
    members = [sorted(part) for part in parts]
    squares = np.empty((len(groups.terms) + 1, len(parts), len(parts)))
    on_event(Started("data error", len(parts)))
    for start in range(0, len(parts), _TOGETHER):
        together = range(start, min(start + _TOGETHER, len(parts)))
        masked = [space.restrict(v, parts[b]) for b in together]
        images = operator.matvecs(masked)
        for b, image in zip(together, images, strict=True):
            squares[0, :, b] = _by_block(space.inners(image, image), members)
        place, shares = 0, groups.share.tolist()
        for products in groups.products(operator, masked):
            share, place = shares[place], place + 1
            for b, image, w in zip(together, images, products, strict=True):
                space.scale(-share / (1 - share), w)
                space.axpy(1 / (1 - share), image, w)
                squares[place, :, b] = _by_block(space.inners(w, w), members)
            del products, w  # before the next group's are made; `enumerate` would keep them
        on_event(Advanced("data error", together.stop))
    on_event(Finished("data error"))
    return squares


def _by_block(inners: np.ndarray, members: Sequence[list[int]]) -> list[float]:
    return [float(inners[m].sum()) for m in members]


def add_to_blocks(
    metrics: dict[str, schema.Metric],
    samples: dict[str, schema.Samples],
    blocks: Sequence[schema.Block],
    squares: np.ndarray,
) -> None:
    """Put the data's error into the block test's figures, and into those of each block.

    They are functions of the blocks' norms, which `squares` are draws of. The draw being one, what is taken of it is
    how the figure moves, and its place is the probes'.
    """
    inside, rows = np.diagonal(squares, axis1=1, axis2=2), squares.sum(axis=2)
    alive = (rows > 0).all(axis=0)
    share = np.where(alive, inside / np.where(alive, rows, 1.0), np.nan)
    by_block = {"relative_error": np.sqrt(np.maximum(1 - share, 0.0)), "cosine": np.sqrt(share), "share": share}
    for name in ("relative_error", "cosine"):
        if alive.any():
            _moved(metrics, samples, name, name, by_block[name][:, alive].mean(axis=1))
    whole = squares.sum(axis=(1, 2))
    if whole.all():
        _moved(metrics, samples, "off_block_fraction", "off_block_fraction", 1 - inside.sum(axis=1) / whole)
    for i, block in enumerate(blocks):
        for name, figures in by_block.items():
            if alive[i]:
                _moved(block.metrics, samples, name, f"blocks.{block.name}.{name}", figures[:, i])


def _moved(
    metrics: dict[str, schema.Metric], samples: dict[str, schema.Samples], name: str, place: str, figures: np.ndarray
) -> None:
    metric = metrics.get(name)
    if metric is not None and metric.value is not None:
        found: dict[str, schema.Samples] = {}
        add_data(metrics, found, name, metric.value + figures[1:] - figures[0])
        samples.setdefault(place, schema.Samples()).data = found[name].data


def add_to_forms(
    systems: Sequence[schema.System],
    samples: dict[str, schema.Samples],
    solutions: Sequence[Solution[ParameterVector]],
    groups: Groups,
    operator: ObservedOperator,
    *,
    gradient: bool,
) -> None:
    """Put the data's error into b.x of each solution that converged: what each group does to it, to first order.

    With (H + damping) x = b a change of H and b moves b.x by 2 x.db - x.dH x (the infinitesimal jackknife, Jaeckel
    1972). One product over the groups for each solution; where b is the slice's `gradient`, one gradient over the
    groups more for all of them. Another b does not change with the rows.
    """
    done = [(system, s) for system, s in zip(systems, solutions, strict=True) if s.converged and s.norm > 0]
    if not done:
        return
    space = groups.subject.risk.space
    vectors = [s.vector for _, s in done]
    forms = groups.forms(operator)(vectors)
    slopes = np.zeros_like(forms)
    if gradient:
        for g, batch in enumerate(groups.batches):
            b = groups.subject.risk.on([batch]).gradient()
            slopes[g] = [space.inner(x, b) for x in vectors]
    for i, (system, s) in enumerate(done):
        influence = groups.without_one(2 * slopes[:, i] - forms[:, i])
        if influence is None or system.metrics["quadratic_form"].value is None:
            continue
        whole = float(groups.share @ (2 * slopes[:, i] - forms[:, i]))
        found: dict[str, schema.Samples] = {}
        add_data(system.metrics, found, "quadratic_form", s.form + influence - whole)
        if system is systems[0]:
            samples |= found
