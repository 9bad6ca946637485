"""How much memory the graph of a product holds, by counting what autograd saves on one row."""

from collections.abc import Mapping

import torch
from torch.autograd.graph import saved_tensors_hooks

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk

Bytes = Mapping[torch.device, int]


class _SavedBytes:
    """Counts the storages that autograd saves, each once, by device; parameters are not counted."""

    def __init__(self, parameters: tuple[torch.Tensor, ...]) -> None:
        self._seen = {p.untyped_storage().data_ptr() for p in parameters}
        self.by_device: dict[torch.device, int] = {p.device: 0 for p in parameters}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.by_device[tensor.device] = self.by_device.get(tensor.device, 0) + storage.nbytes()
        return tensor


def graph_bytes(risk: EmpiricalRisk) -> tuple[Bytes, Bytes]:
    """Bytes by device that double backward's graph holds for the largest batch, and for all batches together.

    Measured on one row (one product) and scaled by tokens. With each batch's graph goes a gradient.
    """
    row = risk.first_row()
    saved = _SavedBytes(tuple(risk.model.parameters()))
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        HessianOperator(row, keep_graph=False).matvec(row.space.zeros())
    return _scaled(saved, row, risk)


def gradient_bytes(risk: EmpiricalRisk) -> Bytes:
    """Bytes by device that the graph of one gradient holds for the largest batch, measured on one row."""
    row = risk.first_row()
    saved = _SavedBytes(tuple(risk.model.parameters()))
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor), twice_differentiable_attention():
        row.batch_loss(row.batches[0])
    return _scaled(saved, row, risk)[0]


def _scaled(saved: _SavedBytes, row: EmpiricalRisk, risk: EmpiricalRisk) -> tuple[Bytes, Bytes]:
    tokens = row.batches[0].targets.numel()
    sizes = [b.targets.numel() / tokens for b in risk.batches]
    gradient = {device: sum(p.nbytes for p in risk.parameters if p.device == device) for device in saved.by_device}
    batch = {device: int(count * max(sizes)) + gradient[device] for device, count in saved.by_device.items()}
    everything = {
        device: int(count * sum(sizes)) + gradient[device] * len(sizes) for device, count in saved.by_device.items()
    }
    return batch, everything
