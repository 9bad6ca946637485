"""The three ways from rows to sequences: token ids as they stand, text packed, text row by row."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hesscli.data import notes as note
from hesscli.data.checks import Bounds, keep
from hesscli.data.rows import token_rows
from hesscli.data.slice import Sequence
from hesscli.data.tokens import Singles, documents, pack_documents
from hesscli.errors import UsageError
from hesscli.events import Advanced, OnEvent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hesscli.data.source import Source

Read = tuple[list[Sequence], list[note.Note]]


def read_as_they_stand(source: Source, *, limit: int, bounds: Bounds, on_event: OnEvent) -> Read:
    """At most `limit` rows of token ids that have a loss term, and what there is to note."""
    kept, passed = keep(
        token_rows(source.rows, source.columns),
        limit=limit,
        check=bounds.check_row,
        on_kept=lambda done: on_event(Advanced("data", done)),
    )
    if not kept:
        field = "labels" if "labels" in source.columns else "input_ids"
        why = "every label is -100 or padding" if field == "labels" else "no two tokens follow each other"
        what = f"none of the {passed} rows of {source.name} has a loss term: {why}"
        raise UsageError(field, what, "give rows with something to predict")
    found = note.passed_over(passed) + note.unused(source.columns)
    return kept, note.fewer(source.name, len(kept), limit) + found


def read_packed(
    source: Source,
    column: str,
    words: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int,
    bounds: Bounds,
    on_event: OnEvent,
) -> Read:
    """At most `limit` sequences of exactly `length` tokens, or the one short sequence that there is."""
    packed = pack_documents(documents(source.rows, column, source.name), words, length=length, limit=limit)
    on_event(Advanced("data", len(packed.sequences)))
    for sequence in packed.sequences:
        bounds.check_tokenised(sequence, spell=words.convert_ids_to_tokens)
    if not any(sequence.num_terms for sequence in packed.sequences):
        raise _no_terms(source, column)
    few = note.fewer(source.name, len(packed.sequences), limit, packed.num_left_over)
    short = note.short(len(packed.sequences[0].targets), length)
    return packed.sequences, few + short + note.borders(packed, words.eos_token_id is not None)


def read_singly(
    source: Source,
    column: str,
    words: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int,
    bounds: Bounds,
    on_event: OnEvent,
) -> Read:
    """At most `limit` rows of text that have a loss term, each cut to `length` tokens."""
    singles = Singles(documents(source.rows, column, source.name), words, length)
    check = partial(bounds.check_tokenised, spell=words.convert_ids_to_tokens)
    kept, passed = keep(
        singles,
        limit=limit,
        check=lambda _row, sequence: check(sequence),
        on_kept=lambda done: on_event(Advanced("data", done)),
    )
    if not kept:
        raise _no_terms(source, column)
    found = note.passed_over(passed) + note.cut(singles.num_cut, length)
    return kept, note.fewer(source.name, len(kept), limit) + found


def _no_terms(source: Source, column: str) -> UsageError:
    what = f"{column!r} of {source.name} gives no sequence of two tokens, so nothing is predicted"
    return UsageError("column", what, "give longer text")
