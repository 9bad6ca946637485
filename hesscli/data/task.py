"""What a model's task asks of its data: which columns, which options, and what the model can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hesscli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from transformers import PreTrainedTokenizerBase

# Options that not every task reads; for the others they are refused rather than ignored.
_READ_BY = {
    "causal-lm": ("mask_prompt", "max_length", "pack"),
    "masked-lm": ("max_length", "pack"),
    "seq2seq-lm": ("max_length", "target_column"),
    "sequence-classification": ("max_length", "target_column"),
    "image-classification": ("target_column",),
}


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the model takes, and what turns text or images into it; a task reads only what concerns it."""

    task: str
    vocab_size: int
    max_positions: int | None
    """The longest sequence, None where there is no such limit."""
    pad_token_id: int | None
    """The id that the model takes for padding."""
    num_token_types: int
    """How many values `token_type_ids` may have, 0 where the model does not read them."""
    num_labels: int
    label2id: Mapping[str, int]
    num_channels: int
    """Of an image: 3 for colours, 1 for grey."""
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    """Called only where text is tokenised or tokens are masked."""
    image_processor: Callable[[], Callable[..., Any]]
    """Called only where images are turned into `pixel_values`."""
    decoder_input_ids: Callable[[torch.Tensor], torch.Tensor]
    """Labels (length,) -> what the decoder reads to predict them."""


def check_read(task: str, given: Mapping[str, object]) -> None:
    """Raise `UsageError` for an option that was given (is not None) and that the task does not read."""
    read = _READ_BY[task]
    for key in sorted({key for keys in _READ_BY.values() for key in keys}):
        if given.get(key) is not None and key not in read:
            raise UsageError(key, f"is not read by {task}, which reads {', '.join(read)}", "leave it out")
    if given.get("mask_prompt") is not None and given.get("pack"):
        raise UsageError("pack", "is on with mask_prompt, and rows with a prompt stand alone", "leave one of them out")
