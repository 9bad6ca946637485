"""Which product to use: decided from memory that was measured, and said in one line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import EmpiricalFisherOperator, FisherOperator, GGNOperator
from hesscli.curvature.layered import LayeredOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.stack import Stack, UnknownStructureError, find_stack
from hesscli.errors import UsageError
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector

ProductName = Literal["auto", "double-backward", "layered"]
Kind = Literal["hessian", "ggn", "fisher", "empirical-fisher"]

# Positions of the row on which layered is held against double backward: their graph is small beside the weights.
_CHECKED_TOKENS = 32

# Graphs may take this part of what is free: the rest is for vectors, the basis and the system.
_SHARE = 0.5

Bytes = Mapping[torch.device, int]


@dataclass(frozen=True, slots=True)
class Choice:
    """An operator, the name of its product and the reason for it."""

    operator: LinearOperator[ParameterVector]
    product: str
    why: str


def choose_operator(risk: EmpiricalRisk, *, kind: Kind, product: ProductName, seed: int) -> Choice:
    """The operator of a kind. The Hessian has several products, the others one; `seed` is for sampled labels.

    Raises UsageError where a product is asked for that the kind does not have.
    """
    if kind == "hessian":
        return choose_product(risk, product=product)
    if product != "auto":
        raise UsageError("operator.product", f"'{product}' is for the Hessian, not for {kind}", "use --product auto")
    operator = {
        "ggn": lambda: GGNOperator(risk),
        "fisher": lambda: FisherOperator(risk, seed=seed),
        "empirical-fisher": lambda: EmpiricalFisherOperator(risk),
    }[kind]()
    why = {
        "ggn": "the loss's own curvature in closed form",
        "fisher": "labels drawn once from the model's predictions",
        "empirical-fisher": "gradients of single terms at the labels of the data",
    }[kind]
    return Choice(operator, "jacobian", f"{why}, 2 gradients each")


def choose_product(risk: EmpiricalRisk, *, product: ProductName) -> Choice:
    """The exact Hessian by the fastest product that fits the memory found, or by the one that is asked for.

    In gradients: double backward with its graph kept costs 2 a product, without 3, layered 4. Where layers are
    not understood, layered gives way to double backward and says so.
    """
    if product == "layered":
        return _layered(risk, "as asked, 4 gradients each")
    batch, everything = graph_bytes(risk)
    tight = max(batch, key=lambda device: everything[device] / max(1, available_bytes(device)))
    free = f"{_size(available_bytes(tight))} free on {tight}"
    if _fits(everything):
        why = f"graph kept between products, 2 gradients each: {_size(everything[tight])} measured against {free}"
        return Choice(HessianOperator(risk, keep_graph=True), "double-backward", why)
    measured = f"a batch's graph of {_size(batch[tight])} measured against {free}"
    if product == "double-backward" or _fits(batch):
        why = f"graph made again for each product, 3 gradients each: {measured}"
        return Choice(HessianOperator(risk, keep_graph=False), "double-backward", why)
    return _layered(risk, f"one layer at a time, 4 gradients each: {measured}")


def _layered(risk: EmpiricalRisk, why: str) -> Choice:
    try:
        stack = _checked_stack(risk)
    except UnknownStructureError as reason:
        operator = HessianOperator(risk, keep_graph=False)
        return Choice(operator, "double-backward", f"layered is not possible ({reason}), 3 gradients each")
    return Choice(LayeredOperator(risk, stack), "layered", why)


def _checked_stack(risk: EmpiricalRisk) -> Stack:
    """The stack, after one product of either kind on one short row.

    Operations without a forward derivative show there, and so does an architecture that is not what it seems:
    weights that two layers share, layers within layers, a piece that the model runs without a gradient.
    """
    row = risk.first_row(most=_CHECKED_TOKENS)
    v = row.space.random("rademacher", seed=0, index=0)
    try:
        stack = find_stack(row)
        product = LayeredOperator(row, stack).matvec(v)
    except UnknownStructureError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnknownStructureError(" ".join(str(error).split())[:120]) from error
    difference = _disagreement(row, HessianOperator(row, keep_graph=False).matvec(v), product)
    if not difference <= 1.0:
        msg = "on a short row it does not agree with double backward"
        raise UnknownStructureError(msg)
    return stack


def _disagreement(risk: EmpiricalRisk, truth: ParameterVector, product: ParameterVector) -> float:
    """The largest difference of a parameter's part, over what rounding explains; puts it into `product`."""
    space = risk.space
    # A model in float64 has float32 inside too: norms are written that way.
    epsilon = max(torch.finfo(dtype).eps for dtype in {torch.float32, *(p.dtype for p in risk.model.parameters())})
    allowed = min(0.1, 1e4 * epsilon)
    space.axpy(-1.0, truth, product)
    sizes, errors = np.sqrt(space.inners(truth, truth)), np.sqrt(space.inners(product, product))
    whole = float(np.linalg.norm(sizes))
    if whole == 0.0:
        return float("inf") if errors.any() else 0.0
    if allowed == 0.1:  # narrow weights: a part that is zero in truth is nothing but the rounding of others
        return float(np.linalg.norm(errors)) / (allowed * whole)
    return float((errors / (allowed * np.maximum(sizes, 0.01 * whole))).max())


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
    tokens = row.batches[0].targets.numel()
    sizes = [b.targets.numel() / tokens for b in risk.batches]
    gradient = {device: sum(p.nbytes for p in risk.parameters if p.device == device) for device in saved.by_device}
    batch = {device: int(count * max(sizes)) + gradient[device] for device, count in saved.by_device.items()}
    everything = {
        device: int(count * sum(sizes)) + gradient[device] * len(sizes) for device, count in saved.by_device.items()
    }
    return batch, everything


def _fits(needed: Bytes) -> bool:
    return all(count <= _SHARE * available_bytes(device) for device, count in needed.items())


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
