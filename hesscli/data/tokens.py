"""From text to token sequences: packed end to end, or one row by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hesscli.data.slice import IGNORED, Sequence
from hesscli.data.values import describe
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from transformers import PreTrainedTokenizerBase

    from hesscli.data.rows import Row


def causal(_number: int, ids: torch.Tensor) -> Sequence:
    """`ids` (length,) with the next token as the target at each position but the last."""
    return Sequence({"input_ids": ids}, torch.cat([ids[1:], ids.new_tensor([IGNORED])]))


def documents(rows: Iterable[Row], column: str, name: str) -> Iterator[str]:
    """The text of each row in order; blank and null rows are passed over.

    Raises:
        UsageError: a row that holds something else than text, or no row with any.
    """
    blank = True
    for number, row in enumerate(rows):
        text = row.get(column)
        if text is not None and not isinstance(text, str):
            what = f"{column!r} of {name} holds {describe(text)} in row {number}, not text"
            remedy = "name a column of text, or call the column input_ids to use tokens as they stand"
            raise UsageError("column", what, remedy)
        if text and not text.isspace():
            blank = False
            yield text
    if blank:
        raise UsageError("column", f"{column!r} of {name} holds only blank text", "give data with text in it")


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences of one length cut from a stream of documents, and what the stream was."""

    sequences: list[Sequence]
    num_documents: int  # that have a part in the sequences
    num_left_over: int  # tokens at the end of the stream that fill no sequence and are dropped


def pack_documents(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int,
    framed: bool,
    finish: Callable[[int, torch.Tensor], Sequence],
) -> Packed:
    """Up to `limit` sequences of exactly `length` tokens, documents joined by the eos token if there is one.

    `framed` documents keep the tokenizer's own special tokens about them, and nothing else stands between them.
    `finish` makes a sequence of its number and its ids. Nothing is read once they are full. A stream too short for
    one sequence is kept whole, as one short sequence. Memory: the tokens asked for, and one document.
    """
    stream: list[int] = []
    starts: list[int] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=framed, verbose=False)["input_ids"]
        if not ids:
            continue
        if stream and tokenizer.eos_token_id is not None and not framed:
            stream.append(tokenizer.eos_token_id)
        starts.append(len(stream))
        stream.extend(ids)
        if len(stream) >= limit * length:
            break
    full = min(limit, len(stream) // length)
    kept = full * length or len(stream)
    ids = torch.tensor(stream[:kept], dtype=torch.int64)
    return Packed(
        sequences=[finish(i, row) for i, row in enumerate(ids.split(length))] if kept else [],
        num_documents=sum(start < kept for start in starts),
        num_left_over=len(stream) - kept if full < limit else 0,
    )


@dataclass(slots=True)
class Cutter:
    """Texts to ids of at most `length`, with the tokenizer's own special tokens; counts those that were cut."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    num_cut: int = 0

    def __call__(self, text: str, *, argument: str = "text") -> torch.Tensor:
        """The ids (length,) of a text; `text_target` for the tokenizers that spell what is predicted otherwise."""
        ids = self.tokenizer(**{argument: text}, verbose=False)["input_ids"]
        if len(ids) > self.length:
            # Again and not sliced: a closing special token must survive the cut.
            ids = self.tokenizer(**{argument: text}, truncation=True, max_length=self.length)["input_ids"]
            self.num_cut += 1
        return torch.tensor(ids, dtype=torch.int64)
