"""Rows of token ids, used as they stand: one row, one sequence."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from hesscli.data.slice import IGNORED, Sequence
from hesscli.data.values import integers
from hesscli.errors import UsageError

Row = dict[str, Any]


def token_rows(rows: Iterable[Row], columns: tuple[str, ...]) -> Iterator[Sequence]:
    """One sequence for each row, padding on the right cut off; rows may have no loss term, or no token.

    `labels` are unshifted, as transformers has them: the target at position t is `labels[t + 1]`. A token that
    `attention_mask` masks is no target and predicts none.

    Raises:
        UsageError: values that are not integers, or columns of different lengths.
    """
    for number, row in enumerate(rows):
        ids = integers("input_ids", row.get("input_ids") or [], number)
        labels = _beside("labels", row, columns, number, ids)
        mask = _beside("attention_mask", row, columns, number, ids)
        targets = _next(ids if labels is None else labels, IGNORED)
        yield Sequence({"input_ids": ids}, targets) if mask is None else _masked(ids, targets, mask, number)


def _next(values: torch.Tensor, last: int) -> torch.Tensor:
    return torch.cat([values[1:], values.new_full((min(1, len(values)),), last)])


def _masked(ids: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, number: int) -> Sequence:
    odd = mask[(mask != 0) & (mask != 1)]
    if len(odd):
        raise UsageError("attention_mask", f"row {number} holds {int(odd[0])}", "use 1 for a token, 0 for padding")
    targets = targets.masked_fill((mask == 0) | (_next(mask, 0) == 0), IGNORED)
    end = int(mask.nonzero().max()) + 1 if mask.any() else 0
    inputs = {"input_ids": ids[:end]}
    if not mask[:end].all():
        inputs["attention_mask"] = mask[:end]
    return Sequence(inputs, targets[:end])


def _beside(field: str, row: Row, columns: tuple[str, ...], number: int, ids: torch.Tensor) -> torch.Tensor | None:
    if field not in columns:
        return None
    value = row.get(field)
    if value is None:
        what = f"row {number} has none, and the column is there"
        raise UsageError(field, what, "give it to every row, or leave the column out")
    if field == "attention_mask" and isinstance(value, list):
        value = [int(v) if isinstance(v, bool) else v for v in value]
    values = integers(field, value, number)
    if len(values) != len(ids):
        what = f"row {number} has {len(values)} of them for {len(ids)} input_ids"
        raise UsageError(field, what, "give one for each token, not shifted")
    return values
