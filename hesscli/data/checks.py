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
    num_token_types: int
    labels_are_tokens: bool

    def check_length(self, max_length: int) -> None:
        """Raise `UsageError` where text would be cut to sequences longer than the model has positions for."""
        if self.max_positions is not None and max_length > self.max_positions:
            what = f"{max_length} is above the model's {self.max_positions} positions"
            raise UsageError("max_length", what, f"lower it to {self.max_positions}")

    def check_row(self, row: int, sequence: Sequence) -> None:
        """Raise `UsageError` for a row of token ids that the model cannot take."""
        labels = sequence.targets[sequence.targets != IGNORED] if self.labels_are_tokens else None
        for field, length in (("input_ids", len(sequence.inputs["input_ids"])), ("labels", len(sequence.targets))):
            if self.max_positions is not None and length > self.max_positions:
                what = f"row {row} has {length} tokens, above the model's {self.max_positions} positions"
                raise UsageError(field, what, "cut the row: rows of input_ids are used as they stand")
        for field, ids in (("input_ids", sequence.inputs["input_ids"]), ("labels", labels)):
            if ids is not None and (odd := _outside(ids, self.vocab_size)) is not None:
                what = f"row {row} holds {odd}, outside the model's vocabulary of {self.vocab_size}"
                mask = f", or {IGNORED} to mask a label" if field == "labels" else ""
                raise UsageError(field, what, f"use ids from 0 to {self.vocab_size - 1}{mask}")
        types = sequence.inputs.get("token_type_ids")
        if types is not None and (odd := _outside(types, self.num_token_types)) is not None:
            what = f"row {row} holds {odd}, and the model has {self.num_token_types} types of tokens"
            raise UsageError("token_type_ids", what, f"use numbers from 0 to {self.num_token_types - 1}")

    def check_tokenised(self, sequence: Sequence, *, spell: Callable[[int], str]) -> None:
        """Raise `UsageError` where the tokenizer gave an id that the model has no embedding for."""
        ids = [sequence.inputs[name] for name in ("input_ids", "decoder_input_ids") if name in sequence.inputs]
        if (odd := _outside(torch.cat(ids), self.vocab_size)) is not None:
            what = f"id {odd} ({spell(odd)!r}) is outside the model's vocabulary of {self.vocab_size}"
            raise UsageError("tokenizer", what, "use the tokenizer that the checkpoint was trained with")


def _outside(ids: torch.Tensor, size: int) -> int | None:
    outside = ids[(ids < 0) | (ids >= size)]
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
