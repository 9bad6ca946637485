"""A slice from a data set: read, tokenised where it is text, checked against the model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

from hesscli.data.checks import Bounds, check_options
from hesscli.data.reading import read_as_they_stand, read_packed, read_singly
from hesscli.data.slice import Slice
from hesscli.data.source import Source, open_source, quiet
from hesscli.errors import UsageError
from hesscli.events import Finished, OnEvent, Started, Warned

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase


def load_slice(
    dataset: str,
    *,
    name: str | None,
    config_name: str | None,
    split: str,
    column: str | None,
    revision: str | None,
    limit: int,
    max_length: int,
    pack: bool,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    vocab_size: int,
    max_positions: int | None,
    offline: bool,
    on_event: OnEvent,
) -> Slice:
    """The first `limit` sequences of a data set, in its own order; equal inputs give equal slices.

    `dataset` is a hub id, a file or a folder of files of one kind. A column `input_ids` is used as it stands
    (one row, one sequence); text is tokenised and, with `pack`, joined and cut to `max_length`. `column` None
    means `input_ids` where it exists, else `text`. `name` is the id to report: None gives the hub id or the
    file's name, never a path. `tokenizer` is called only where text has to be tokenised. Rows without a loss
    term are left out. The slice's `notes` are sent to `on_event` as well, each once as `Warned`.

    Raises:
        UsageError: an option, a file or a row that cannot be used; rows are counted from 0.
        UnavailableError: a hub data set that cannot be had.
    """
    check_options(limit=limit, max_length=max_length)
    bounds = Bounds(vocab_size, max_positions)
    pad: int | None = None
    on_event(Started("data", limit, "sequences"))
    with quiet():
        source = open_source(dataset, config_name=config_name, split=split, revision=revision, offline=offline)
        source = replace(source, name=name or source.name)
        with closing(source.rows):
            column = _column(source, column)
            if column == "input_ids":
                sequences, notes = read_as_they_stand(source, limit=limit, bounds=bounds, on_event=on_event)
                pack, max_length = False, max(len(s.targets) for s in sequences)
            else:
                bounds.check_length(max_length)
                words = tokenizer()
                pad = words.pad_token_id
                read = partial(read_packed if pack else read_singly, length=max_length, limit=limit, bounds=bounds)
                sequences, notes = read(source, column, words, on_event=on_event)
    on_event(Finished("data"))
    for code, text in notes:
        on_event(Warned(code, text))
    return Slice(
        sequences=tuple(sequences),
        id=source.name,
        split=split,
        config_name=config_name,
        revision=source.revision,
        column=column,
        max_length=max_length,
        packed=pack,
        # An id that the embedding has: padding is looked up before it is masked.
        pad_token_id=pad if pad is not None and 0 <= pad < vocab_size else 0,
        notes=tuple(notes),
    )


def _column(source: Source, column: str | None) -> str:
    if column is None:
        column = "input_ids" if "input_ids" in source.columns else "text"
    if column in source.columns:
        return column
    what = f"{column!r} is not a column of {source.name} (it has: {', '.join(source.columns)})"
    close = get_close_matches(column.lower(), [c.lower() for c in source.columns], n=1)
    meant = next((c for c in source.columns if c.lower() in close), None)
    raise UsageError("column", what, f"did you mean {meant!r}?" if meant else "name one with --column")
