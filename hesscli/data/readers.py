"""What each task reads: from a column to rows of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesscli.data import notes as note
from hesscli.data import pairs, reading
from hesscli.data.images import read_images
from hesscli.data.labels import find_labels
from hesscli.data.masking import masking
from hesscli.data.prompts import prompted
from hesscli.data.rows import causal_rows, masked_rows, token_rows
from hesscli.data.tokens import Cutter, causal, documents
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from hesscli.data.reading import Read, Request
    from hesscli.data.slice import Sequence


def _causal(request: Request) -> Read:
    source = request.source
    if request.column == "input_ids":
        if request.mask_prompt is not None:
            raise UsageError("mask_prompt", "is given with a column input_ids", "mark the prompt by labels of -100")
        return reading.as_they_stand(request, causal_rows(source.rows, source.columns))
    words = request.model.tokenizer()
    if request.mask_prompt is not None:
        _check_column(request, "mask_prompt", request.mask_prompt)
        cut = Cutter(words, request.max_length)
        return reading.row_by_row(request, cut, prompted(source.rows, request.column, request.mask_prompt, cut))
    if request.pack:
        return reading.packed(request, words, framed=False, finish=causal)
    return _singly(request, Cutter(words, request.max_length), causal)


def _masked(request: Request) -> Read:
    source, types = request.source, _token_types(request)
    if request.column == "input_ids" and "labels" in source.columns:
        return reading.as_they_stand(request, masked_rows(source.rows, source.columns, *types))
    words = request.model.tokenizer()
    mask = masking(words, vocab_size=request.model.vocab_size, seed=request.seed)
    if request.column == "input_ids":
        rows = (row for _, row in token_rows(source.rows, source.columns, *types))
        kept, notes = reading.as_they_stand(request, (mask.row(row) for row in rows))
    elif request.pack:
        kept, notes = reading.packed(request, words, framed=True, finish=mask)
    else:
        kept, notes = _singly(request, Cutter(words, request.max_length), mask)
    return kept, notes + note.masked(request.seed)


def _seq2seq(request: Request) -> Read:
    source, shift = request.source, request.model.decoder_input_ids
    if request.column == "input_ids":
        _check_column(request, "labels", "labels")
        return reading.as_they_stand(request, pairs.decoded_rows(source, shift))
    target = request.target_column or "target"
    _check_column(request, "target_column", target)
    cut = Cutter(request.model.tokenizer(), request.max_length)
    return reading.row_by_row(request, cut, pairs.decoded_text(source, request.column, target, cut, shift))


def _classified(request: Request) -> Read:
    source, labels = request.source, find_labels(request.source, request.model, request.target_column)
    if request.column == "input_ids":
        rows = pairs.classified_rows(source, labels, *_token_types(request))
        kept, notes = reading.as_they_stand(request, rows)
    else:
        cut = Cutter(request.model.tokenizer(), request.max_length)
        kept, notes = reading.row_by_row(request, cut, pairs.classified_text(source, request.column, labels, cut))
    return kept, notes + labels.notes(kept)


def _images(request: Request) -> Read:
    labels = find_labels(request.source, request.model, request.target_column)
    kept = read_images(request, labels)
    return kept, note.fewer(request.source.name, len(kept), request.limit) + labels.notes(kept)


READERS = {
    "causal-lm": _causal,
    "masked-lm": _masked,
    "seq2seq-lm": _seq2seq,
    "sequence-classification": _classified,
    "image-classification": _images,
}


def _singly(request: Request, cut: Cutter, finish: Callable[[int, torch.Tensor], Sequence]) -> Read:
    texts = documents(request.source.rows, request.column, request.source.name)
    return reading.row_by_row(request, cut, (finish(number, cut(text)) for number, text in enumerate(texts)))


def _token_types(request: Request) -> tuple[str, ...]:
    return ("token_type_ids",) if request.model.num_token_types else ()


def _check_column(request: Request, field: str, column: str) -> None:
    if column not in request.source.columns:
        what = f"{column!r} is not a column of {request.source.name} (it has: {', '.join(request.source.columns)})"
        flag = field.replace("_", "-")
        raise UsageError(field, what, "add it" if field == "labels" else f"name one with --{flag}")
