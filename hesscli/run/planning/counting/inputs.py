"""A batch whose rows are all full, as a task's data would be: what shapes are counted with."""

from typing import Any

import torch

from hesscli.data import Batch

_IMAGE = 224  # pixels, where a config does not say


def full_batch(config: Any, task: str, *, rows: int, length: int) -> Batch:
    """Zeros of the shapes that a batch of the task has, each position with a loss term."""
    ids = torch.zeros((rows, length), dtype=torch.long)
    if task == "image-classification":
        size = getattr(config, "image_size", None) or _IMAGE
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.zeros((rows, int(getattr(config, "num_channels", 3)), height, width))
        return Batch({"pixel_values": pixels}, ids[:, :1])
    if task == "sequence-classification":
        return Batch({"input_ids": ids}, ids[:, :1])
    if task == "seq2seq-lm":
        return Batch({"input_ids": ids, "decoder_input_ids": ids}, ids)
    return Batch({"input_ids": ids}, ids)


def patches(config: Any, task: str) -> int | None:
    """Positions of an image, patches of 16 x 16 pixels as the slice counts them; None for text."""
    if task != "image-classification":
        return None
    height, width = full_batch(config, task, rows=1, length=1).inputs["pixel_values"].shape[-2:]
    return -(-height // 16) * -(-width // 16)
