"""Masked language modelling: which tokens are hidden, by draws that depend on their place alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from hesscli.data.rows import TokenRow
from hesscli.data.slice import IGNORED, Sequence
from hesscli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Devlin et al. 2019, section 3.1 and appendix A.1, and the default of transformers' collator: 15 % of the tokens are
# predicted; of these 80 % are hidden, 10 % are replaced by a random token and 10 % are left.
_PREDICTED, _HIDDEN, _REPLACED = 0.15, 0.8, 0.9


@dataclass(frozen=True, slots=True)
class Masking:
    """Hides tokens of rows, never special ones. The same row number, ids and seed give the same row again."""

    mask_token_id: int
    special_ids: tuple[int, ...]
    num_words: int  # that a replacement is drawn from
    seed: int

    def __call__(self, number: int, ids: torch.Tensor) -> Sequence:
        """A row of ids (length,) with some hidden, and those as targets."""
        return self.row(TokenRow(number, ids))

    def row(self, row: TokenRow) -> Sequence:
        """The same for a row with what stands beside its ids; padding is not hidden."""
        draws = torch.from_numpy(self._draws(row.number, len(row.ids)))
        words = torch.isin(row.ids, torch.tensor(self.special_ids, dtype=torch.int64), invert=True)
        if row.mask is not None:
            words &= row.mask != 0
        chosen = words & (draws[:, 0] < _PREDICTED)
        hidden = chosen & (draws[:, 1] < _HIDDEN)
        replaced = chosen & ~hidden & (draws[:, 1] < _REPLACED)
        random = (draws[:, 2] * self.num_words).long()
        shown = torch.where(hidden, self.mask_token_id, torch.where(replaced, random, row.ids))
        targets = torch.where(chosen, row.ids, IGNORED)
        return Sequence(replace(row, ids=shown).inputs(), targets[: row.end])

    def _draws(self, number: int, length: int) -> np.ndarray:
        """Uniform numbers in [0, 1), (length, 3): Philox is counter-based, and its raw bits are the same everywhere."""
        philox = np.random.Philox(key=self.seed % 2**64, counter=[0, 0, 0, number])
        bits = philox.random_raw(3 * length).reshape(length, 3)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def masking(words: PreTrainedTokenizerBase, *, vocab_size: int, seed: int) -> Masking:
    """The masking that goes with a tokenizer.

    Raises:
        UsageError: it has no mask token, or one that the model does not know.
    """
    if words.mask_token_id is None or words.mask_token_id >= vocab_size:
        what = "the tokenizer has no mask token" if words.mask_token_id is None else "the mask token is not the model's"
        raise UsageError("tokenizer", what, "give a dataset with columns input_ids and labels")
    return Masking(words.mask_token_id, tuple(sorted(words.all_special_ids)), min(len(words), vocab_size), seed)
