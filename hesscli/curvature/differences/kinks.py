"""What in a network makes its gradient jump, so that a difference of gradients is no second derivative.

Autograd gives the Hessian almost everywhere; a difference adds the jumps that its step crosses, over the step: on an
OPT of 0.1M parameters 20 to 260 times the Hessian. That is another quantity, and the smaller the step the larger it is.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.events import Warned

_KINKED = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.SELU,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)
# A square of it has a gradient without jumps, but a curvature that jumps: differences are off by a percent.
_KINKED_CLASSES = ("ReLUSquaredActivation",)
# What is called without a module, and named nowhere: RWKV squares a ReLU.
_KINKED_OPERATIONS = re.compile(r"aten::_?(relu|leaky_relu|prelu|rrelu|threshold|hard|soft_?shrink|.*max_pool)")
_ACTIVATION_KEY = re.compile(r"act(_fn|ivation(_function)?)?$")
_KINKED_NAME = re.compile(r"relu|hard")
_EXPERTS_KEY = re.compile(r"^(moe_)?(num|n)_(\w+_)?experts$")


class _Operations(TorchDispatchMode):
    """The names of operations with a kink that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        if _KINKED_OPERATIONS.match(name):
            self.found.add(name.removeprefix("aten::").strip("_"))
        return function(*args, **(kwargs or {}))


def find_kinks(risk: EmpiricalRisk) -> list[Warned]:
    """A warning for activations with a kink; empty where there is none.

    From module types, from the config, and from what runs: one forward pass of a short row, where neither names any.
    """
    named = kinks_by_name(risk.model)
    if named:
        return named
    row = risk.first_row(most=LOOKED_AT)
    with torch.no_grad(), _Operations() as seen:
        row.terms(row.batches[0])
    return _warning(seen.found)


def kinks_by_name(model: nn.Module) -> list[Warned]:
    """The same from module types and from the config alone."""
    entries = _config_entries(model)
    kinks = {type(m).__name__ for m in model.modules() if isinstance(m, _KINKED) or type(m).__name__ in _KINKED_CLASSES}
    kinks = kinks or {
        value
        for key, value in entries
        if _ACTIVATION_KEY.search(key) and isinstance(value, str) and _KINKED_NAME.search(value)
    }
    return _warning(kinks)


def _warning(kinks: set[str]) -> list[Warned]:
    if not kinks:
        return []
    text = f"{', '.join(sorted(kinks))}: differences of the gradient also count the kinks that a step crosses"
    return [Warned("kinks", f"{text}, which the Hessian does not; use an exact product")]


def has_experts(model: nn.Module) -> bool:
    """Whether the config, or a module's name, says that tokens are sent to experts."""
    entries = _config_entries(model)
    named = any(_EXPERTS_KEY.match(key) and isinstance(value, int) and value > 1 for key, value in entries)
    return named or any("Router" in type(m).__name__ for m in model.modules())


def _config_entries(model: nn.Module) -> list[tuple[str, Any]]:
    config: Any = getattr(model, "config", None)
    return list(_entries(config.to_dict())) if hasattr(config, "to_dict") else []


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
        yield str(key), value
