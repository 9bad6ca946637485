"""The loss as a sum over its terms; the division by their global number is made elsewhere, once.

Every task here is a softmax over classes at positions: tokens of a vocabulary at each place of a text, or labels at
one position a row. What differs between tasks stands in the targets of the data.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesscli.data.slice import IGNORED

# Positions whose scores are taken at a time, and entries of them (32 MiB in float32; derivatives hold six times that).
_CHUNK, _CHUNK_ENTRIES = 4096, 1 << 23


def positions_at_once(num_classes: int) -> int:
    """How many positions' scores are taken at a time so that they stay small beside one layer."""
    return max(1, min(_CHUNK, _CHUNK_ENTRIES // num_classes))


def constant_inputs(model: nn.Module) -> dict[str, Any]:
    """What a model's forward gets besides the data: no cache, which would keep keys and values of the graph alive."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def scores(model: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
    """Scores of the classes at each position, (rows, positions, classes); a classifier has one position."""
    logits: torch.Tensor = model(**inputs).logits
    return logits if logits.dim() == 3 else logits.unsqueeze(1)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy in nats at each position, (positions,) in float32 or wider; 0 where there is no term.

    The model's own loss is not used: it is a mean over the batch, may add auxiliary terms, and is float32
    even for a float64 model.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    size = positions_at_once(logits.shape[-1])
    parts = zip(logits.split(size), targets.to(logits.device).split(size), strict=True)
    return torch.cat(
        [functional.cross_entropy(s.to(wide), t, reduction="none", ignore_index=IGNORED) for s, t in parts]
    )


def twice_differentiable_attention() -> AbstractContextManager[None]:
    """A context in which scaled dot product attention takes the one path that has second derivatives.

    The fused kernels have no double backward and no forward mode; the restriction must cover the forward
    pass and both backward passes.
    """
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
