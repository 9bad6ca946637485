"""Whether the loss is a function of weights and data alone: finite, the same twice, the same for a row by itself."""

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk, LossValue
from hesscli.data.slice import IGNORED, Batch
from hesscli.errors import UntrustworthyError

_SAME = 1e-4  # of the loss: kernels that add in another order show 1e-7, dropout 1e-2 and more
# Of the loss of a row: another shape is added in another order, and bfloat16 rounds each layer.
_PADDED, _PADDED_NARROW = 1e-3, 0.1


def check_loss(risk: EmpiricalRisk, loss: LossValue) -> None:
    """Evaluate the loss once more, and one padded row by itself: two forward passes, one of a batch and one of a row.

    Raises UntrustworthyError where the loss is not finite, differs between evaluations, or depends on padding or on
    which rows share a batch.
    """
    if any(isinstance(m, _BatchNorm) and m.training for m in risk.model.modules()):
        raise UntrustworthyError(
            "loss", "batch norm is in training mode: a row's loss depends on its batch", "call eval() on the model"
        )
    if not np.isfinite(loss.value):
        raise UntrustworthyError(
            "loss", f"the loss on the slice is {loss.value}", "use --dtype float32, another slice, or check the weights"
        )
    again = risk.loss().value
    if not abs(loss.value - again) <= _SAME * abs(loss.value):
        raise UntrustworthyError(
            "loss", f"two evaluations gave {loss.value:.6g} and {again:.6g}", "the model is not deterministic"
        )
    narrow = any(p.dtype not in (torch.float32, torch.float64) for p in risk.model.parameters())
    padded = _padded_row(risk)
    if padded is not None:
        inside, alone = padded
        if not abs(inside - alone) <= (_PADDED_NARROW if narrow else _PADDED) * max(abs(inside), abs(alone)):
            raise UntrustworthyError(
                "loss",
                f"a row's loss is {inside:.6g} with padding and {alone:.6g} without",
                "the model sees its padding; use --batch-size 1",
            )


def _padded_row(risk: EmpiricalRisk) -> tuple[float, float] | None:
    """The mean loss of the first padded row with terms, in its batch and by itself; None where no row is padded."""
    for batch in risk.batches:
        mask = batch.inputs.get("attention_mask")
        if mask is None:
            continue
        rows = ((mask[:, -1] == 0) & (batch.targets != IGNORED).any(dim=1)).nonzero().flatten().tolist()
        for row in rows[:1]:
            length = int(mask[row].nonzero().max()) + 1
            parts = {**batch.inputs, "": batch.targets}
            cut = {
                n: t[row : row + 1, :length] if t.shape == mask.shape else t[row : row + 1] for n, t in parts.items()
            }
            targets = cut.pop("")
            with torch.no_grad(), twice_differentiable_attention():
                inside, alone = risk.terms(batch)[row], risk.terms(Batch(cut, targets))[0]
            count = int((targets != IGNORED).sum())
            return float(inside.double().sum()) / count, float(alone.double().sum()) / count
    return None
