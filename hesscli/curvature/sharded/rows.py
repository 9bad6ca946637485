"""Which rows of the data a process runs its model on."""

from collections.abc import Sequence

from hesscli.data.slice import IGNORED, Batch
from hesscli.distributed import Ranks

FILLER = -1  # the first row of a batch that is none of the data


def own_batches(batches: Sequence[Batch], ranks: Ranks) -> list[Batch]:
    """This rank's rows, as many batches on every rank.

    Rows stand in order over the ranks, and those of two batches are not put into one. Where another rank has more
    batches, a row without a loss term fills up: every pass joins the collectives of the others and adds nothing.
    """
    shares = [_share(batches, ranks.size, rank) for rank in range(ranks.size)]
    filler = _without_terms(batches[0])
    own = shares[ranks.rank]
    return own + [filler] * (max(map(len, shares)) - len(own))


def _share(batches: Sequence[Batch], size: int, rank: int) -> list[Batch]:
    counts = [len(batch.targets) for batch in batches]
    total = sum(counts)
    first, last = total * rank // size, total * (rank + 1) // size
    out, start = [], 0
    for batch, count in zip(batches, counts, strict=True):
        low, high = max(first - start, 0), min(last - start, count)
        if low < high:
            out.append(_rows(batch, slice(low, high)))
        start += count
    return out


def _rows(batch: Batch, rows: slice) -> Batch:
    inputs = {name: value[rows] for name, value in batch.inputs.items()}
    return Batch(inputs, batch.targets[rows], batch.first_row + (rows.start or 0))


def _without_terms(batch: Batch) -> Batch:
    row = _rows(batch, slice(0, 1))
    return Batch(row.inputs, row.targets.new_full(row.targets.shape, IGNORED), FILLER)
