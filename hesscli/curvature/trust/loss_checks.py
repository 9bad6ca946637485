"""Whether the loss is a function of weights and data alone: finite, the same twice, the same for a row by itself."""

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hesscli.curvature.fingerprint import fingerprint
from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk, LossValue
from hesscli.data.slice import IGNORED, Batch
from hesscli.errors import UntrustworthyError

_SAME = 1e-4  # of the loss: kernels that add in another order show 1e-7, dropout 1e-2 and more
# Of the loss of a row: another shape is added in another order, and bfloat16 rounds each layer.
_PADDED, _PADDED_NARROW = 1e-3, 0.1


def check_loss(risk: EmpiricalRisk, loss: LossValue) -> None:
    """Evaluate the loss once more, and one row by itself: two forward passes, one of a batch and one of a row.

    Raises UntrustworthyError where the loss is not finite, differs between evaluations, where a pass changes a buffer,
    and where a row's loss depends on padding or on the rows beside it.
    """
    if any(isinstance(m, _BatchNorm) and m.training for m in risk.model.modules()):
        raise UntrustworthyError(
            "loss", "batch norm is in training mode: a row's loss depends on its batch", "call eval() on the model"
        )
    if not np.isfinite(loss.value):
        raise UntrustworthyError(
            "loss", f"the loss on the slice is {loss.value}", "use --dtype float32, another slice, or check the weights"
        )
    before = _buffers(risk)
    again = risk.loss().value
    changed = [name for name, held in _buffers(risk).items() if before.get(name) != held]
    if changed:
        what = f"a pass changes the buffer '{changed[0]}', and so the next loss"
        raise UntrustworthyError("loss", what, "call eval() on the model, or keep its code from writing to it")
    if not abs(loss.value - again) <= _SAME * abs(loss.value):
        raise UntrustworthyError(
            "loss", f"two evaluations gave {loss.value:.6g} and {again:.6g}", "the model is not deterministic"
        )
    narrow = any(p.dtype not in (torch.float32, torch.float64) for p in risk.model.parameters())
    padded = _padded_row(risk)
    found = padded or _row_beside_others(risk)
    if found is not None:
        batch, row, length = found
        inside, alone = _beside_others_and_alone(risk, batch, row, length)
        if not abs(inside - alone) <= (_PADDED_NARROW if narrow else _PADDED) * max(abs(inside), abs(alone)):
            where = ("with padding", "without") if padded else ("beside other rows", "by itself")
            why = "the model sees its padding" if padded else "rows of a batch see one another"
            what = f"a row's loss is {inside:.6g} {where[0]} and {alone:.6g} {where[1]}"
            raise UntrustworthyError("loss", what, f"{why}; use --batch-size 1")


def _buffers(risk: EmpiricalRisk) -> dict[str, tuple[int, ...]]:
    """Numbers that change with the values of each buffer, not with how often it was written to."""
    return {name: fingerprint([buffer])[1:] for name, buffer in risk.model.named_buffers()}


def _padded_row(risk: EmpiricalRisk) -> tuple[Batch, int, int] | None:
    """The first padded row with terms: its batch, its place there, and its length; None where no row is padded."""
    for batch in risk.batches:
        mask = batch.inputs.get("attention_mask")
        if mask is None:
            continue
        for row in ((mask[:, -1] == 0) & (batch.targets != IGNORED).any(dim=1)).nonzero().flatten().tolist()[:1]:
            return batch, row, int(mask[row].nonzero().max()) + 1
    return None


def _row_beside_others(risk: EmpiricalRisk) -> tuple[Batch, int, int] | None:
    """The last row with terms of the first batch that has several rows; None where rows are alone."""
    for batch in risk.batches:
        rows = (batch.targets != IGNORED).any(dim=1).nonzero().flatten().tolist()
        if len(batch.targets) > 1 and rows:
            return batch, rows[-1], batch.targets.shape[1]
    return None


def _beside_others_and_alone(risk: EmpiricalRisk, batch: Batch, row: int, length: int) -> tuple[float, float]:
    """The mean loss of a row in its batch, and by itself without its padding."""
    mask = batch.inputs.get("attention_mask")
    parts = {**batch.inputs, "": batch.targets}
    cut = {
        n: t[row : row + 1, :length] if mask is not None and t.shape == mask.shape else t[row : row + 1]
        for n, t in parts.items()
    }
    targets = cut.pop("")
    with torch.no_grad(), twice_differentiable_attention():
        inside, alone = risk.terms(batch)[row], risk.terms(Batch(cut, targets))[0]
    count = int((targets != IGNORED).sum())
    return float(inside.double().sum()) / count, float(alone.double().sum()) / count
