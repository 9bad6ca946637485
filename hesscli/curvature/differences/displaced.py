"""Gradients at displaced weights. The model's own weights are never written.

A displaced copy stands in for the weights, so they are the same bit for bit whatever happens. Weights narrower than
float32 could not hold a displacement (at 1e-4 of their length bfloat16 keeps a fifth of its direction): their copy,
and so the pass through the model, is in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from hesscli.curvature.differences.routing import Choices, changed
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data.slice import Batch
from hesscli.linalg.space import ParameterVector


class DisplacedGradient:
    """The gradient of a risk at theta + alpha v, less the gradient at theta, which is kept.

    Where the model chooses, as experts for tokens, it counts the choices that a displacement changes; elsewhere that
    costs nothing. Holds that gradient. A call holds a displaced copy of the selected weights, its result, and what one
    batch's gradient needs; where weights are narrower than float32, a copy of all the others in float32 too. Costs a
    gradient; where the model chooses, the first one costs two.

    Raises FloatingPointError where a gradient is not finite.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self.risk = risk
        self.weights_norm = risk.weights_norm()
        self.rounding = max(float(torch.finfo(_wide(p)).eps) for p in risk.parameters)
        """Spacing at 1 of the dtype that displaced weights are in."""
        self._before: list[torch.Tensor] | None = None
        with Choices() as seen:
            self._origin = self._gradient(risk.space.zeros(), 0.0)
        self.norm = risk.space.norm(self._origin)
        if seen.taken(None):
            # Again, for what came first ran the model once more to learn its structure.
            self._before = []
            self._gradient(risk.space.zeros(), 0.0)
            self._before = self._after
        self.num_choices = int(risk.space.ranks.sum(np.array([sum(len(sets) for sets in self._before or [])]))[0])
        """How often the model chooses in one pass over the data, as a token's experts in a layer; 0 if it does not."""
        self.switched: torch.Tensor | None = None
        """Which of this process's choices the last displacement changed, boolean; None if that cannot be told."""
        self.size = 0.0
        """The length of the last change of the gradient."""

    def change(self, v: ParameterVector, alpha: float) -> ParameterVector:
        """g(theta + alpha v) - g(theta)."""
        out = self._total(v, alpha)
        self.switched = None if self._before is None else changed(self._before, self._after)
        self.risk.space.axpy(-1.0, self._origin, out)
        self.size = _finite(self.risk.space.norm(out))
        return out

    def count(self, switched: torch.Tensor | None) -> int | None:
        """How many of all processes' choices are changed; None if one of them cannot tell."""
        if self._before is None:
            return None
        own = [float(switched is None), 0.0 if switched is None else float(switched.sum())]
        unknown, found = self.risk.space.ranks.sum(np.array(own))
        return None if unknown else int(found)

    def origin(self) -> ParameterVector:
        """A copy of the gradient at theta."""
        return self.risk.space.copy(self._origin)

    def _gradient(self, v: ParameterVector, alpha: float) -> ParameterVector:
        total = self._total(v, alpha)
        _finite(self.risk.space.norm(total))
        return total

    def _total(self, v: ParameterVector, alpha: float) -> ParameterVector:
        risk, space = self.risk, self.risk.space
        if (elsewhere := getattr(risk, "gradient_along", None)) is not None:  # where the weights are not all here
            self._after: list[torch.Tensor] = []
            with _without_cudnn_attention():
                return elsewhere(v, alpha, self._watched)
        moved = {
            name: torch.add(p.detach().to(_wide(p)), part.to(_wide(p)), alpha=alpha).requires_grad_()
            for name, p, part in zip(space.names, risk.parameters, v, strict=True)
        }
        weights = _widened(risk.model) | moved
        total = space.zeros()
        self._after = []
        with _without_cudnn_attention():
            for batch in risk.batches:
                with self._watched(batch):
                    risk.add_gradient(batch, list(moved.values()), total, weights)
        space.scale(1.0 / risk.num_terms, total)
        return total

    @contextmanager
    def _watched(self, batch: Batch) -> Iterator[None]:
        """Around a batch's gradient: its choices are kept, where the model makes any."""
        if self._before is None:
            yield
            return
        with Choices(with_graphs=not isinstance(self.risk, LayeredRisk)) as choices:
            yield
        self._after += choices.taken(_positions(batch))


def _positions(batch: Batch) -> torch.Tensor | None:
    """Which positions are no padding, as the model is told; None where it is told nothing."""
    mask = batch.inputs.get("attention_mask")
    return None if mask is None else mask.bool()


def _finite(norm: float) -> float:
    if not np.isfinite(norm):
        msg = "a gradient is not finite"
        raise FloatingPointError(msg)
    return norm


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _widened(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies in float32 of parameters and buffers that are narrower."""
    return {
        name: tensor.detach().float()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.dtype.is_floating_point and tensor.dtype != _wide(tensor)
    }


@contextmanager
def _without_cudnn_attention() -> Iterator[None]:
    """All fused attention but cuDNN's: its backward returns NaN for some lengths with a mask (pytorch 196678)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
