"""What a slice must satisfy to be measured with a model: lengths, vocabulary, loss terms."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from hesscli.data.slice import IGNORED, Sequence
from hesscli.errors import UsageError

# Rows without a loss term that are read in search of a first one that has some: a data set without any must
# not be streamed to its end, and it may have no end.
PATIENCE = 10_000


def check_options(*, limit: int, max_length: int) -> None:
    """Raise `UsageError` for bounds that no data set can meet."""
    if limit < 1:
        raise UsageError("limit", f"{limit} is below 1", "ask for at least one sequence")
    if max_length < 2:
        raise UsageError("max_length", f"{max_length} is below 2", "a loss term takes two tokens")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the model can take: ids below `vocab_size`, rows of at most `max_positions` tokens if it has any."""

    vocab_size: int
    max_positions: int | None

    def check_length(self, max_length: int) -> None:
        """Raise `UsageError` where text would be cut to sequences longer than the model has positions for."""
        if self.max_positions is not None and max_length > self.max_positions:
            what = f"{max_length} is above the model's {self.max_positions} positions"
            raise UsageError("max_length", what, f"lower it to {self.max_positions}")

    def check_row(self, row: int, sequence: Sequence) -> None:
        """Raise `UsageError` for a row of token ids that the model cannot take."""
        length = len(sequence.targets)
        if self.max_positions is not None and length > self.max_positions:
            what = f"row {row} has {length} tokens, above the model's {self.max_positions} positions"
            raise UsageError("input_ids", what, "cut the row: rows of input_ids are used as they stand")
        labels = sequence.targets[sequence.targets != IGNORED]
        for field, ids in (("input_ids", sequence.inputs["input_ids"]), ("labels", labels)):
            if (odd := self._outside(ids)) is not None:
                what = f"row {row} holds {odd}, outside the model's vocabulary of {self.vocab_size}"
                mask = f", or {IGNORED} to mask a label" if field == "labels" else ""
                raise UsageError(field, what, f"use ids from 0 to {self.vocab_size - 1}{mask}")

    def check_tokenised(self, sequence: Sequence, *, spell: Callable[[int], str]) -> None:
        """Raise `UsageError` where the tokenizer gave an id that the model has no embedding for."""
        if (odd := self._outside(sequence.inputs["input_ids"])) is not None:
            what = f"id {odd} ({spell(odd)!r}) is outside the model's vocabulary of {self.vocab_size}"
            raise UsageError("tokenizer", what, "use the tokenizer that the checkpoint was trained with")

    def _outside(self, ids: torch.Tensor) -> int | None:
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        return int(outside[0]) if len(outside) else None


def keep(
    candidates: Iterable[Sequence],
    *,
    limit: int,
    check: Callable[[int, Sequence], None],
    on_kept: Callable[[int], None],
) -> tuple[list[Sequence], int]:
    """The first `limit` candidates that have a loss term, and how many without one were passed over."""
    kept: list[Sequence] = []
    passed = 0
    for row, sequence in enumerate(candidates):
        check(row, sequence)
        if sequence.num_terms:
            kept.append(sequence)
            on_kept(len(kept))
        else:
            passed += 1
        if len(kept) == limit or (not kept and passed == PATIENCE):
            break
    return kept, passed
