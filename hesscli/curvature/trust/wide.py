"""A model's own weights in a wider dtype: what its products and gradients are held against."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.layers.residence import Resident
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data.slice import Batch

_SHARE = 0.5  # of what is free may be taken


class _Float64ForFloat32(TorchFunctionMode):
    """Norms, rotary angles, softmaxes and routers are written to go through float32 whatever the model's type."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if a is torch.float32 else a for a in args]
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*args, **kwargs)


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Within it, what asks for float32 by name or by default gets float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64ForFloat32():
            yield
    finally:
        torch.set_default_dtype(before)


def has_room(risk: EmpiricalRisk, *, bytes_per_weight: int) -> bool:
    """Whether a model that lies whole on its devices has free memory for so much, and as much again."""
    if not isinstance(risk.residence, Resident) or risk.space.ranks.device is not None:  # shared: none has all of it
        return False
    needed: dict[torch.device, int] = {}
    for p in risk.model.parameters():
        needed[p.device] = needed.get(p.device, 0) + bytes_per_weight * p.numel()
    return all(count <= _SHARE * available_bytes(device) for device, count in needed.items())


def widened(risk: EmpiricalRisk, batches: Sequence[Batch], dtype: torch.dtype) -> EmpiricalRisk:
    """The risk of these batches on a copy of the model, which is what its weights are in `dtype`."""
    model = copy.deepcopy(risk.model, _without_graphs(risk.model)).to(dtype)
    parameters = dict(model.named_parameters())
    return EmpiricalRisk(
        model,
        [
            replace(b, inputs={n: x.to(dtype) if x.is_floating_point() else x for n, x in b.inputs.items()})
            for b in batches
        ],
        names=risk.space.names,
        parameters=[parameters[name] for name in risk.space.names],
        input_device=risk.input_device,
    )


def _without_graphs(model: nn.Module) -> dict[int, Any]:
    """What stands for the tensors with a graph that modules keep from their last pass: torch copies no such tensor."""
    kept = (x for m in model.modules() for x in vars(m).values() if isinstance(x, torch.Tensor) and not x.is_leaf)
    return {id(x): x.detach().clone() for x in kept}
