"""Rows of token ids, used as they stand: one row, one sequence."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from hesscli.data.slice import IGNORED, Sequence
from hesscli.data.values import integers
from hesscli.errors import UsageError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The token ids of a row, and what stands beside them; all of one length."""

    number: int
    ids: torch.Tensor
    mask: torch.Tensor | None = None  # 1 for a token, 0 for padding
    beside: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The length without the padding on the right."""
        if self.mask is None:
            return len(self.ids)
        return int(self.mask.nonzero().max()) + 1 if self.mask.any() else 0

    def inputs(self) -> dict[str, torch.Tensor]:
        """What an encoder or decoder reads, padding on the right cut off."""
        inputs = {"input_ids": self.ids[: self.end]}
        if self.mask is not None and not self.mask[: self.end].all():
            inputs["attention_mask"] = self.mask[: self.end]
        if "token_type_ids" in self.beside:
            inputs["token_type_ids"] = self.beside["token_type_ids"][: self.end]
        return inputs


def token_rows(rows: Iterable[Row], columns: tuple[str, ...], *beside: str) -> Iterator[tuple[Row, TokenRow]]:
    """Each row and its token ids, with the columns of `beside` that there are; a row may hold no token.

    Raises:
        UsageError: values that are not integers, or columns of different lengths.
    """
    for number, row in enumerate(rows):
        ids = integers("input_ids", row.get("input_ids") or [], number)
        mask = _beside("attention_mask", row, number, ids) if "attention_mask" in columns else None
        if mask is not None and len(odd := mask[(mask != 0) & (mask != 1)]):
            raise UsageError("attention_mask", f"row {number} holds {int(odd[0])}", "use 1 for a token, 0 for padding")
        found = {name: _beside(name, row, number, ids) for name in beside if name in columns}
        yield row, TokenRow(number, ids, mask, found)


def causal_rows(rows: Iterable[Row], columns: tuple[str, ...]) -> Iterator[Sequence]:
    """One sequence for each row for a causal model; rows may have no loss term.

    `labels` are unshifted, as transformers has them: the target at position t is `labels[t + 1]`. A token that
    `attention_mask` masks is no target and predicts none.
    """
    for _, row in token_rows(rows, columns, "labels"):
        targets = _next(row.beside.get("labels", row.ids), IGNORED)
        if row.mask is not None:
            targets = targets.masked_fill((row.mask == 0) | (_next(row.mask, 0) == 0), IGNORED)
        yield Sequence(row.inputs(), targets[: row.end])


def masked_rows(rows: Iterable[Row], columns: tuple[str, ...], *beside: str) -> Iterator[Sequence]:
    """One sequence for each row whose `labels` say what was masked: the target at position t is `labels[t]`."""
    for _, row in token_rows(rows, columns, "labels", *beside):
        targets = row.beside["labels"]
        if row.mask is not None:
            targets = targets.masked_fill(row.mask == 0, IGNORED)
        yield Sequence(row.inputs(), targets[: row.end])


def _next(values: torch.Tensor, last: int) -> torch.Tensor:
    return torch.cat([values[1:], values.new_full((min(1, len(values)),), last)])


def _beside(name: str, row: Row, number: int, ids: torch.Tensor) -> torch.Tensor:
    value = row.get(name)
    if value is None:
        what = f"row {number} has none, and the column is there"
        raise UsageError(name, what, "give it to every row, or leave the column out")
    if name == "attention_mask" and isinstance(value, list):
        value = [int(v) if isinstance(v, bool) else v for v in value]
    values = integers(name, value, number)
    if len(values) != len(ids):
        what = f"row {number} has {len(values)} of them for {len(ids)} input_ids"
        raise UsageError(name, what, "give one for each token, not shifted")
    return values
