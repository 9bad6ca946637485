"""Which product to use: decided from memory that was measured, and said in one line."""

from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.risk import EmpiricalRisk

# Kept graphs may take this part of what is free: the rest is for vectors, the basis and the system.
_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """An operator, the name of its product and the reason for it."""

    operator: HessianOperator
    product: str
    why: str


class _SavedBytes:
    """Counts the storages that autograd saves, each once, by device; parameters are not counted."""

    def __init__(self, parameters: tuple[torch.Tensor, ...]) -> None:
        self._seen = {p.untyped_storage().data_ptr() for p in parameters}
        self.by_device: dict[torch.device, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.by_device[tensor.device] = self.by_device.get(tensor.device, 0) + storage.nbytes()
        return tensor


def graph_bytes(risk: EmpiricalRisk) -> dict[torch.device, int]:
    """Bytes that the graphs of all batches would hold by device, scaled up from the first batch by tokens.

    Costs one product on the first batch. Beside the saved activations each batch keeps a gradient.
    """
    first = EmpiricalRisk(
        risk.model,
        risk.batches[:1],
        names=risk.space.names,
        parameters=risk.parameters,
        input_device=risk.input_device,
    )
    saved = _SavedBytes(tuple(risk.model.parameters()))
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        HessianOperator(first, keep_graph=False).matvec(first.space.zeros())
    tokens = sum(b.targets.numel() for b in risk.batches) / risk.batches[0].targets.numel()
    total = {device: int(count * tokens) for device, count in saved.by_device.items()}
    for p in risk.parameters:
        total[p.device] = total.get(p.device, 0) + p.nbytes * len(risk.batches)
    return total


def choose_product(risk: EmpiricalRisk) -> Choice:
    """The exact Hessian by double backward, its graph kept between products where the memory found allows it."""
    needed = graph_bytes(risk)
    free = {device: available_bytes(device) for device in needed}
    fits = all(needed[device] <= _SHARE * free[device] for device in needed)
    tight = max(needed, key=lambda device: needed[device] / max(1, free[device]))
    figures = f"{_gib(needed[tight])} measured against {_gib(free[tight])} free on {tight}"
    if fits:
        why = f"graph kept between products, 2 gradients each: {figures}"
    else:
        why = f"graph made again for each product, 3 gradients each: {figures}"
    return Choice(HessianOperator(risk, keep_graph=fits), "double-backward", why)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
