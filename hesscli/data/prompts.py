"""Rows of a prompt and its solution, with the loss on the solution alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hesscli.data.slice import IGNORED, Sequence
from hesscli.data.values import text_of
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedTokenizerBase

    from hesscli.data.rows import Row
    from hesscli.data.tokens import Cutter


def prompted(rows: Iterable[Row], column: str, prompt: str, cut: Cutter) -> Iterator[Sequence]:
    """One sequence for each row: prompt and solution, a loss term at each token of the solution.

    The two texts are tokenised apart and joined, so that no token lies across their border: a space between them
    must stand in one of them. Special tokens stand where the tokenizer puts them about a single text; one that closes
    the solution is part of it. A row is cut at its end to `cut.length`; where nothing of the solution is left, as where
    it is blank, the row has no term.

    Raises:
        UsageError: a prompt or a solution that is not text.
    """
    for number, row in enumerate(rows):
        question = _ids(cut.tokenizer, text_of("mask_prompt", row, prompt, number))
        answer_text = text_of("column", row, column, number)
        answer = _ids(cut.tokenizer, answer_text)
        opening, closing = _frame(cut.tokenizer, answer_text, answer)
        room = cut.length - len(opening) - len(closing)
        body = (question + answer)[: max(room, 0)]
        cut.num_cut += len(question) + len(answer) > room
        ids = torch.tensor(opening + body + closing, dtype=torch.int64)
        targets = torch.cat([ids[1:], ids.new_tensor([IGNORED])]) if len(ids) else ids
        first = len(opening) + len(question)  # the solution's first token, predicted one position before
        targets[: max(first - 1, 0)] = IGNORED
        if len(body) <= len(question):
            targets[:] = IGNORED  # a closing token alone is no solution
        yield Sequence({"input_ids": ids}, targets)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _frame(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a single text."""
    whole: list[int] = tokenizer(text, verbose=False)["input_ids"]
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start], whole[start + len(ids) :]
    what = "the tokenizer changes a text's tokens where it adds special ones"
    raise UsageError("mask_prompt", what, "give a column input_ids, with labels of -100 at the prompt")
