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

from hesscli.curvature.risk import EmpiricalRisk
from hesscli.linalg.space import ParameterVector


class DisplacedGradient:
    """The gradient of a risk at theta + alpha v, less the gradient at theta, which is kept.

    Holds that gradient. A call holds a displaced copy of the selected weights, its result, and what one batch's
    gradient needs; where weights are narrower than float32, a copy of all the others in float32 too. Costs a gradient.

    Raises FloatingPointError where a gradient is not finite.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self.risk = risk
        self.weights_norm = risk.space.norm([p.detach().to(risk.space.dtype) for p in risk.parameters])
        self.rounding = max(float(torch.finfo(_wide(p)).eps) for p in risk.parameters)
        """Spacing at 1 of the dtype that displaced weights are in."""
        self._origin = self._gradient(risk.space.zeros(), 0.0)
        self.norm = risk.space.norm(self._origin)

    def change(self, v: ParameterVector, alpha: float) -> ParameterVector:
        """g(theta + alpha v) - g(theta)."""
        out = self._gradient(v, alpha)
        self.risk.space.axpy(-1.0, self._origin, out)
        return out

    def _gradient(self, v: ParameterVector, alpha: float) -> ParameterVector:
        risk, space = self.risk, self.risk.space
        moved = {
            name: torch.add(p.detach().to(_wide(p)), part.to(_wide(p)), alpha=alpha).requires_grad_()
            for name, p, part in zip(space.names, risk.parameters, v, strict=True)
        }
        weights = _widened(risk.model) | moved
        total = space.zeros()
        with _without_cudnn_attention():
            for batch in risk.batches:
                risk.add_gradient(batch, list(moved.values()), total, weights)
        space.scale(1.0 / risk.num_terms, total)
        if not np.isfinite(space.norm(total)):
            msg = "a gradient is not finite"
            raise FloatingPointError(msg)
        return total


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
