"""How much memory the graph of a product holds, by counting what autograd saves on one row."""

from collections.abc import Mapping

import torch
from torch.autograd.graph import saved_tensors_hooks

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data.slice import Batch

# Times the scores: they, their tangents, what the curvature makes of them, and what autograd keeps between.
_SCORES = 5

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

    Measured on the longest row (one product) and scaled by what enters the model. With each batch's graph goes a
    gradient.
    """
    row = _longest_row(risk)
    saved = _SavedBytes(tuple(risk.model.parameters()))
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        # Along a vector that is zero nowhere: an operation without a second derivative raises here.
        HessianOperator(row, keep_graph=False).matvec(row.space.random("rademacher", seed=0, index=0))
    sizes = [_size(b) / _size(row.batches[0]) for b in risk.batches]
    gradient = {device: sum(p.nbytes for p in risk.parameters if p.device == device) for device in saved.by_device}
    batch = {device: int(count * max(sizes)) + gradient[device] for device, count in saved.by_device.items()}
    everything = {
        device: int(count * sum(sizes)) + gradient[device] * len(sizes) for device, count in saved.by_device.items()
    }
    return batch, everything


def jacobian_bytes(risk: EmpiricalRisk) -> Bytes:
    """Bytes by device that a Gauss-Newton product holds for the largest batch: a graph, a gradient, and scores."""
    row = _longest_row(risk)
    saved = _SavedBytes(tuple(risk.model.parameters()))
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor), twice_differentiable_attention():
        found = scores(row.model, row.inputs(row.batches[0]))
    share = max(_size(b) for b in risk.batches) / _size(row.batches[0])
    held = {
        device: count + sum(p.nbytes for p in risk.parameters if p.device == device)
        for device, count in saved.by_device.items()
    }
    held[found.device] = held.get(found.device, 0) + _SCORES * found.nbytes
    return {device: int(count * share) for device, count in held.items()}


def _longest_row(risk: EmpiricalRisk) -> EmpiricalRisk:
    """One row of the batch whose rows are longest: attention grows with the square of the length."""
    widest = max((b for b in risk.batches if b.num_terms), key=lambda b: _size(b) / len(b.targets))
    return risk.on([widest]).first_row()


def _size(batch: Batch) -> int:
    """Numbers that enter the model for a batch."""
    return sum(value.numel() for value in batch.inputs.values())
