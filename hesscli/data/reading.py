"""The three ways from rows to sequences: token ids as they stand, text packed, text row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hesscli.data import notes as note
from hesscli.data.checks import Bounds, keep
from hesscli.data.slice import Sequence
from hesscli.data.tokens import Cutter, documents, pack_documents
from hesscli.errors import UsageError
from hesscli.events import Advanced, OnEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from transformers import PreTrainedTokenizerBase

    from hesscli.data.source import Source
    from hesscli.data.task import Requirements

Read = tuple[list[Sequence], list[note.Note]]


@dataclass(frozen=True, slots=True)
class Request:
    """Which rows are read, how, and for which model; a task reads only what concerns it."""

    source: Source
    column: str
    target_column: str | None
    mask_prompt: str | None
    limit: int
    max_length: int
    pack: bool
    seed: int
    model: Requirements
    on_event: OnEvent

    @property
    def bounds(self) -> Bounds:
        """What the rows are checked against."""
        model = self.model
        tokens = model.task != "sequence-classification"
        return Bounds(model.vocab_size, model.max_positions, model.num_token_types, labels_are_tokens=tokens)

    def advance(self, done: int) -> None:
        """Say how many rows are there."""
        self.on_event(Advanced("data", done))


def as_they_stand(request: Request, candidates: Iterable[Sequence]) -> Read:
    """At most `limit` rows of token ids that have a loss term, and what there is to note."""
    source = request.source
    kept, passed = keep(candidates, limit=request.limit, check=request.bounds.check_row, on_kept=request.advance)
    if not kept:
        field = "labels" if "labels" in source.columns else "input_ids"
        why = "every label is -100 or padding" if field == "labels" else "no token is predicted"
        what = f"none of the {passed} rows of {source.name} has a loss term: {why}"
        raise UsageError(field, what, "give rows with something to predict")
    found = note.passed_over(passed) + note.unused(source.columns, request.model.num_token_types)
    return kept, note.fewer(source.name, len(kept), request.limit) + found


def packed(
    request: Request,
    words: PreTrainedTokenizerBase,
    *,
    framed: bool,
    finish: Callable[[int, torch.Tensor], Sequence],
) -> Read:
    """At most `limit` sequences of exactly `max_length` tokens, or the one short sequence that there is."""
    source, length, limit = request.source, request.max_length, request.limit
    request.bounds.check_length(length)
    texts = documents(source.rows, request.column, source.name)
    found = pack_documents(texts, words, length=length, limit=limit, framed=framed, finish=finish)
    request.advance(len(found.sequences))
    for sequence in found.sequences:
        request.bounds.check_tokenised(sequence, spell=words.convert_ids_to_tokens)
    kept = [sequence for sequence in found.sequences if sequence.num_terms]
    if not kept:
        raise _no_terms(request)
    few = note.fewer(source.name, len(found.sequences), limit, found.num_left_over)
    few += note.passed_over(len(found.sequences) - len(kept))
    short = note.short(len(found.sequences[0].targets), length)
    return kept, few + short + note.borders(found, framed or words.eos_token_id is not None)


def row_by_row(request: Request, cut: Cutter, candidates: Iterable[Sequence]) -> Read:
    """At most `limit` rows of text that have a loss term; `cut` is what the candidates are tokenised with."""
    bounds, source = request.bounds, request.source
    bounds.check_length(cut.length)
    spell = cut.tokenizer.convert_ids_to_tokens
    kept, passed = keep(
        candidates,
        limit=request.limit,
        check=lambda _row, sequence: bounds.check_tokenised(sequence, spell=spell),
        on_kept=request.advance,
    )
    if not kept:
        raise _no_terms(request)
    found = note.passed_over(passed) + note.cut(cut.num_cut, cut.length)
    return kept, note.fewer(source.name, len(kept), request.limit) + found


def _no_terms(request: Request) -> UsageError:
    what = f"{request.column!r} of {request.source.name} gives no sequence in which a token is predicted"
    return UsageError("column", what, "give longer text")
