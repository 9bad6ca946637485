"""A slice from a data set: read, tokenised or masked where its task asks for it, checked against the model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from difflib import get_close_matches

from hesscli.data.checks import check_options
from hesscli.data.readers import READERS
from hesscli.data.reading import Request
from hesscli.data.slice import Slice
from hesscli.data.source import Source, open_source, quiet
from hesscli.data.task import Requirements
from hesscli.errors import UsageError
from hesscli.events import Finished, OnEvent, Started, Warned


def load_slice(
    dataset: str,
    *,
    model: Requirements,
    name: str | None,
    config_name: str | None,
    split: str,
    column: str | None,
    target_column: str | None,
    mask_prompt: str | None,
    revision: str | None,
    limit: int,
    max_length: int,
    pack: bool,
    seed: int,
    offline: bool,
    on_event: OnEvent,
) -> Slice:
    """The first `limit` rows of a data set for the model's task, in its own order; equal inputs give equal slices.

    `dataset` is a hub id, a file, a folder of files of one kind, or a folder of class folders of images. A column
    `input_ids` or `pixel_values` is used as it stands (one row, one sequence); text is tokenised and, with `pack`,
    joined and cut to `max_length`. `column` None means the first of these that exists, else `text` or `image`.
    `target_column` holds what a decoder makes of the text, or the class of the row; `mask_prompt` the text before
    `column` that has no loss. `seed` is for the tokens that a masked language model predicts. `name` is the id to
    report: None gives the hub id or the file's name, never a path. Rows without a loss term are left out. The slice's
    `notes` are sent to `on_event` as well, each once as `Warned`.

    Raises:
        UsageError: an option, a file or a row that cannot be used; rows are counted from 0.
        UnavailableError: a hub data set that cannot be had.
    """
    check_options(limit=limit, max_length=max_length)
    on_event(Started("data", limit, "sequences"))
    with quiet():
        source = open_source(dataset, config_name=config_name, split=split, revision=revision, offline=offline)
        source = replace(source, name=name or source.name)
        with closing(source.rows):
            column = _column(source, column, _defaults(model.task, mask_prompt))
            request = Request(
                source, column, target_column, mask_prompt, limit, max_length, pack, seed, model, on_event
            )
            sequences, notes = READERS[model.task](request)
    on_event(Finished("data"))
    for code, text in notes:
        on_event(Warned(code, text))
    images = model.task == "image-classification"
    from_text = not images and column != "input_ids"
    return Slice(
        sequences=tuple(sequences),
        id=source.name,
        split=split,
        config_name=config_name,
        revision=source.revision,
        column=column,
        max_length=0 if images else max_length if from_text else max(s.length for s in sequences),
        packed=from_text and pack and mask_prompt is None and model.task in ("causal-lm", "masked-lm"),
        # An id that the embedding has: padding is looked up before it is masked.
        pad_token_id=model.pad_token_id or 0,
        notes=tuple(notes),
    )


def _defaults(task: str, mask_prompt: str | None) -> tuple[str, ...]:
    if task == "image-classification":
        return "pixel_values", "image"
    return ("text",) if mask_prompt is not None else ("input_ids", "text")


def _column(source: Source, column: str | None, defaults: tuple[str, ...]) -> str:
    if column is None:
        column = next((name for name in defaults if name in source.columns), defaults[-1])
    if column in source.columns:
        return column
    what = f"{column!r} is not a column of {source.name} (it has: {', '.join(source.columns)})"
    close = get_close_matches(column.lower(), [c.lower() for c in source.columns], n=1)
    meant = next((c for c in source.columns if c.lower() in close), None)
    raise UsageError("column", what, f"did you mean {meant!r}?" if meant else "name one with --column")
