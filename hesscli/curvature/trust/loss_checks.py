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
# Of the loss of a row, or of a nat where it is less: a difference of scores, whose roundings do not shrink with it.
# Another shape is added in another order, which showed 3e-7 at most over a hundred architectures, where a model that
# sees padding showed 6e-4 and more; bfloat16 rounds each layer.
_PADDED, _PADDED_NARROW = 2e-5, 0.1


def check_loss(risk: EmpiricalRisk, loss: LossValue) -> None:
    """Evaluate the loss once more, and a row by itself; two rows where encoder and decoder both read padding.

    Costs a forward pass of all, and of a batch and a row for each that is taken by itself.

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
    padded = _padded_rows(risk)
    for batch, row in padded or _row_beside_others(risk):
        inside, alone = _beside_others_and_alone(risk, batch, row)
        if not abs(inside - alone) <= (_PADDED_NARROW if narrow else _PADDED) * max(abs(inside), abs(alone), 1.0):
            where = ("with padding", "without") if padded else ("beside other rows", "by itself")
            why = "the model sees its padding" if padded else "rows of a batch see one another"
            what = f"a row's loss is {inside:.6g} {where[0]} and {alone:.6g} {where[1]}"
            raise UntrustworthyError("loss", what, f"{why}; use --batch-size 1")


def _buffers(risk: EmpiricalRisk) -> dict[str, tuple[int, ...]]:
    """Numbers that change with the values of each buffer, not with how often it was written to."""
    return {name: fingerprint([buffer])[1:] for name, buffer in risk.model.named_buffers()}


def _padded_rows(risk: EmpiricalRisk) -> list[tuple[Batch, int]]:
    """The row with terms that has most padding, and that whose decoder reads most of it: its batch and place there."""
    most: dict[str, tuple[int, Batch, int]] = {}
    for batch in risk.batches:
        for row in _rows_with_terms(batch):
            for name, length in _lengths(batch, row).items():
                padding = batch.inputs[name].shape[1] - length
                if padding > most.get(name, (0, batch, row))[0]:
                    most[name] = padding, batch, row
    found = {(id(batch), row): (batch, row) for _, batch, row in most.values()}
    return list(found.values())


def _row_beside_others(risk: EmpiricalRisk) -> list[tuple[Batch, int]]:
    """The last row with terms of the first batch that has several rows; none where rows are alone."""
    for batch in risk.batches:
        rows = _rows_with_terms(batch)
        if len(batch.targets) > 1 and rows:
            return [(batch, rows[-1])]
    return []


def _rows_with_terms(batch: Batch) -> list[int]:
    rows: list[int] = (batch.targets != IGNORED).any(dim=1).nonzero().flatten().tolist()
    return rows


def _lengths(batch: Batch, row: int) -> dict[str, int]:
    """The positions of a row that are no padding: by its mask, and what a decoder reads up to the last term."""
    found = {}
    if (mask := batch.inputs.get("attention_mask")) is not None:
        found["attention_mask"] = int(mask[row].nonzero().max()) + 1
    if "decoder_input_ids" in batch.inputs:
        found["decoder_input_ids"] = int((batch.targets[row] != IGNORED).nonzero().max()) + 1
    return found


def _beside_others_and_alone(risk: EmpiricalRisk, batch: Batch, row: int) -> tuple[float, float]:
    """The mean loss of a row in its batch, and by itself without its padding."""
    lengths = _lengths(batch, row)
    read = lengths.get("attention_mask")
    written = lengths.get("decoder_input_ids", read)
    inputs = {
        name: value[row : row + 1, : written if name.startswith("decoder") else read]
        if value.dim() == 2
        else value[row : row + 1]
        for name, value in batch.inputs.items()
    }
    targets = batch.targets[row : row + 1, :written]
    with torch.no_grad(), twice_differentiable_attention():
        inside, alone = risk.terms(batch)[row], risk.terms(Batch(inputs, targets))[0]
    count = int((targets != IGNORED).sum())
    return float(inside.double().sum()) / count, float(alone.double().sum()) / count
