"""Rows of two parts: a source and what a decoder makes of it, or a text and its class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hesscli.data.rows import token_rows
from hesscli.data.slice import IGNORED, Sequence
from hesscli.data.values import integers, text_of
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hesscli.data.labels import Labels
    from hesscli.data.rows import TokenRow
    from hesscli.data.source import Source
    from hesscli.data.tokens import Cutter

    Shift = Callable[[torch.Tensor], torch.Tensor]  # labels to what the decoder reads


def decoded_text(source: Source, column: str, target_column: str, cut: Cutter, shift: Shift) -> Iterator[Sequence]:
    """One sequence for each row of two texts, both with the tokenizer's own special tokens.

    Raises:
        UsageError: a source or a target that is not text.
    """
    for number, row in enumerate(source.rows):
        ids = cut(text_of("column", row, column, number))
        labels = cut(text_of("target_column", row, target_column, number), argument="text_target")
        yield _decoded({"input_ids": ids}, labels, shift)


def decoded_rows(source: Source, shift: Shift) -> Iterator[Sequence]:
    """One sequence for each row of `input_ids` and `labels`, which are of different lengths."""
    for row, tokens in token_rows(source.rows, source.columns):
        if row.get("labels") is None:
            raise UsageError("labels", f"row {tokens.number} has none", "give the ids that the decoder should predict")
        labels = integers("labels", row["labels"], tokens.number)
        yield _decoded(_inputs(tokens), labels, shift)


def classified_text(source: Source, column: str, labels: Labels, cut: Cutter) -> Iterator[Sequence]:
    """One sequence for each row of a text and its class."""
    for number, row in enumerate(source.rows):
        ids = cut(text_of("column", row, column, number))
        if not len(ids):
            raise UsageError("column", f"{column!r} gives no token in row {number}", "leave the row out")
        yield Sequence({"input_ids": ids}, labels.target(number, row))


def classified_rows(source: Source, labels: Labels, *beside: str) -> Iterator[Sequence]:
    """One sequence for each row of `input_ids` and its class."""
    for row, tokens in token_rows(source.rows, source.columns, *beside):
        yield Sequence(_inputs(tokens), labels.target(tokens.number, row))


def _inputs(tokens: TokenRow) -> dict[str, torch.Tensor]:
    if not tokens.end:
        raise UsageError("input_ids", f"row {tokens.number} holds no token", "leave the row out")
    return tokens.inputs()


def _decoded(inputs: dict[str, torch.Tensor], labels: torch.Tensor, shift: Shift) -> Sequence:
    """Labels of -100 at the end are padding: nothing depends on what a decoder reads there."""
    kept = (labels != IGNORED).nonzero()
    labels = labels[: int(kept.max()) + 1] if len(kept) else labels[:0]
    shifted = shift(labels) if len(labels) else labels
    return Sequence({**inputs, "decoder_input_ids": shifted}, labels)
