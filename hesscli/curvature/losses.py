"""The loss of a batch as a sum over its terms; the division by their global number is made elsewhere, once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesscli.data.slice import IGNORED, Batch

_CHUNK = 4096  # positions whose logits are brought to float32 at a time


def logits_of(output: Any) -> torch.Tensor:
    """The scores over the vocabulary in a causal language model's output, (rows, length, vocabulary)."""
    logits: torch.Tensor = output.logits
    return logits


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy in nats at each position, (positions,) in float32 or wider; 0 where there is no term."""
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return functional.cross_entropy(logits.to(wide), targets, reduction="none", ignore_index=IGNORED)


def cross_entropy_terms(model: Callable[..., Any], batch: Batch, input_device: torch.device) -> torch.Tensor:
    """The cross-entropy in nats at each position of a batch, (rows, length).

    The model's own loss is not used: it is a mean over the batch, may add auxiliary terms, and is float32
    even for a float64 model.
    """
    inputs = {name: value.to(input_device) for name, value in batch.inputs.items()}
    logits = logits_of(model(**inputs, use_cache=False))
    targets = batch.targets.to(logits.device).flatten()
    parts = zip(logits.flatten(0, 1).split(_CHUNK), targets.split(_CHUNK), strict=True)
    return torch.cat([cross_entropy(scores, part) for scores, part in parts]).view(batch.targets.shape)


def twice_differentiable_attention() -> AbstractContextManager[None]:
    """A context in which scaled dot product attention takes the one path that has second derivatives.

    The fused kernels have no double backward and no forward mode; the restriction must cover the forward
    pass and both backward passes.
    """
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
