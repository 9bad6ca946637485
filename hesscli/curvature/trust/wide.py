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
_VECTORS = 4  # that a run holds beside its weights while a product is checked
NO_LIMITS: Mapping[torch.device, int] = {}


_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_NARROWING = (torch.Tensor.float, torch.Tensor.bfloat16, torch.Tensor.half)


class _Float64ForNarrow(TorchFunctionMode):
    """Norms, rotary angles, softmaxes and routers are written to go through float32 whatever the model's type.

    What a model in float32 brings to bfloat16 on its way, scores say, is an error of its products too.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in _NARROWING:
            return args[0].double()
        if function is torch.Tensor.view:  # by a dtype: the same bytes, as of a file
            return function(*args, **(kwargs or {}))
        args = [_wider(a) for a in args]
        kwargs = {k: _wider(v) for k, v in (kwargs or {}).items()}
        return function(*args, **kwargs)


def _wider(given: Any) -> Any:
    return torch.float64 if isinstance(given, torch.dtype) and given in _NARROW else given


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Within it, what asks for float32 or less by name, or for float32 by default, gets float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64ForNarrow():
            yield
    finally:
        torch.set_default_dtype(before)


def has_room(risk: EmpiricalRisk, *, bytes_per_weight: int, limits: Mapping[torch.device, int] = NO_LIMITS) -> bool:
    """Whether a model that lies whole on its devices has free memory for so much, and as much again.

    `limits` are the bytes that a run may hold on a device, its weights and four vectors among them.
    """
    if not isinstance(risk.residence, Resident) or risk.space.ranks.device is not None:  # shared: none has all of it
        return False
    needed: dict[torch.device, int] = {}
    held: dict[torch.device, int] = {}
    for p in risk.model.parameters():
        needed[p.device] = needed.get(p.device, 0) + bytes_per_weight * p.numel()
        held[p.device] = held.get(p.device, 0) + p.nbytes + (_VECTORS * 4 * p.numel() if p.requires_grad else 0)
    fits = (count <= _SHARE * available_bytes(device) for device, count in needed.items())
    within = (held.get(device, 0) + needed.get(device, 0) <= limit for device, limit in limits.items())
    return all(fits) and all(within)


def widened(risk: EmpiricalRisk, batches: Sequence[Batch], dtype: torch.dtype) -> EmpiricalRisk:
    """The risk of these batches on a copy of the model, which is what its weights are in `dtype`."""
    # Over several devices accelerate puts a `to` of its own on a model, which a copy shares: it moves the original.
    model = nn.Module.to(copy.deepcopy(risk.model, _without_graphs(risk.model)), dtype)
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
