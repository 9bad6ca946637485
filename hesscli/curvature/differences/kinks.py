"""What in a network makes its gradient jump, so that a difference of gradients is no second derivative.

Autograd gives the Hessian almost everywhere; a difference adds the jumps that its step crosses, over the step: on an
OPT of 0.1M parameters 20 to 260 times the Hessian. That is another quantity, and the smaller the step the larger it is.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

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
_ACTIVATION_KEY = re.compile(r"act(_fn|ivation(_function)?)?$")
_KINKED_NAME = re.compile(r"relu|hard")
_EXPERTS_KEY = re.compile(r"^(moe_)?(num|n)_(\w+_)?experts$")


def find_kinks(model: nn.Module) -> list[Warned]:
    """A warning for activations with a kink; empty where there is none.

    From module types and from the config, where activations are called without a module.
    """
    entries = _config_entries(model)
    kinks = {type(m).__name__ for m in model.modules() if isinstance(m, _KINKED) or type(m).__name__ in _KINKED_CLASSES}
    kinks = kinks or {
        value
        for key, value in entries
        if _ACTIVATION_KEY.search(key) and isinstance(value, str) and _KINKED_NAME.search(value)
    }
    found = []
    if kinks:
        text = f"{', '.join(sorted(kinks))}: differences of the gradient also count the kinks that a step crosses"
        found.append(Warned("kinks", f"{text}, which the Hessian does not; use an exact product"))
    return found


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
