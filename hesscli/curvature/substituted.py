"""A model run with other tensors in the place of its weights, which it has again afterwards."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


def run_with(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """What `model(*args, **kwargs)` returns with `weights` by name in the place of its own.

    A weight that several modules hold is replaced in all of them. `functional_call` by itself swaps it once for each
    of its names, and back in the same order: a module that stands at two places, as the trained tokens of a tied
    embedding do in PEFT, keeps what it was given, and later gradients and products are those of another model.
    """
    if not weights:
        return model(*args, **(kwargs or {}))
    return functional_call(model, _once(model, weights), args, dict(kwargs or {}), tie_weights=False)


def _once(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with one name for each module that holds them."""
    names: dict[int, list[str]] = {}
    modules = dict(model.named_modules())  # each once, wherever it stands
    for prefix, module in modules.items():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    names.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    found = {}
    for name, weight in weights.items():
        place, _, own = name.rpartition(".")
        module = modules[place] if place in modules else model.get_submodule(place)
        found.update(dict.fromkeys(names[id(getattr(module, own))], weight))
    return found
