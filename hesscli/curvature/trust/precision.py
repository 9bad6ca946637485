"""Whether a model in float64 is so throughout: the code of many brings norms and rotations to float32."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk
from hesscli.events import Warned

FLOAT32_EPSILON = float(torch.finfo(torch.float32).eps)


class _Narrowing(TorchDispatchMode):
    """Sees whether an operation makes a narrower tensor of one in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        wide = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves((args, kwargs)))
        made = [x.dtype for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.found |= wide and any(dtype in (torch.float32, torch.bfloat16, torch.float16) for dtype in made)
        return out


def narrow_inside(risk: EmpiricalRisk) -> Warned | None:
    """A warning where weights are float64 and the model's code computes in less; one forward pass of a short row."""
    if risk.space.dtype != torch.float64:
        return None
    row = risk.first_row(most=LOOKED_AT)
    with torch.no_grad(), _Narrowing() as seen:
        row.terms(row.batches[0])
    if not seen.found:
        return None
    text = "the weights are float64, but the model's code computes in float32 inside"
    return Warned("float32-inside", f"{text}: figures are good to about 1e-7 and not to 1e-16")
