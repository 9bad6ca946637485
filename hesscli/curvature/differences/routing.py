"""Which choices a model makes on the way to its loss: experts of tokens. A choice that changes is a jump of the loss.

A choice is the index that a maximum or a top-k is found at, where it is used afterwards: experts are gathered by it.
What routes by names of its own, or in a kernel, is found as well or not at all; names are not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_CHOOSING = {
    function: name
    for name in ("topk", "max", "min", "argmax", "argmin")
    for function in (getattr(torch, name), getattr(torch.Tensor, name))
}


@dataclass(slots=True)
class _Choice:
    """The indices that one call found, and the dimension that they are a set along, if they have it."""

    indices: torch.Tensor
    dim: int | None
    used: bool = False


class Choices(TorchFunctionMode):
    """Records the choices among floating-point numbers that run inside; what integers are looked up by is data.

    Without `with_graphs` only those that are made without a graph: a layered sweep makes each layer again with one.
    """

    def __init__(self, *, with_graphs: bool = True) -> None:
        super().__init__()
        self._with_graphs = with_graphs
        self._made: dict[int, _Choice] = {}  # by the id of the indices, which it keeps alive

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and not self._with_graphs:
            return function(*args, **kwargs)
        for given in tree_leaves((args, kwargs)):
            if id(given) in self._made:
                self._made[id(given)].used = True
        out = function(*args, **kwargs)
        name = _CHOOSING.get(function)
        if name is not None and args[0].is_floating_point():
            indices = out if name.startswith("arg") else out[1] if isinstance(out, tuple) else None
            if indices is not None:
                self._made[id(indices)] = _Choice(indices, _set_dimension(name, args, kwargs, indices))
        return out

    def taken(self, mask: torch.Tensor | None) -> list[torch.Tensor]:
        """The sets that were chosen and used, call by call, (choosers, chosen) in rising order.

        `mask`, of the positions that are no padding, is laid on calls that choose once for each position.
        """
        found = []
        for choice in self._made.values():
            if choice.used:
                rows = choice.indices.unsqueeze(-1) if choice.dim is None else choice.indices.movedim(choice.dim, -1)
                rows = rows.reshape(-1, rows.shape[-1]).sort(dim=-1).values
                kept = mask is not None and mask.numel() == len(rows)
                found.append(rows[mask.flatten().to(rows.device)] if kept and mask is not None else rows)
        return found


def changed(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Which choosers have chosen another set, (choosers,) boolean on the host; None if they are not the same ones."""
    if [b.shape for b in before] != [a.shape for a in after]:
        return None
    if not before:  # a process without rows
        return torch.zeros(0, dtype=torch.bool)
    return torch.cat([(b != a).any(dim=-1).cpu() for b, a in zip(before, after, strict=True)])


def _set_dimension(name: str, args: Sequence[Any], kwargs: dict[str, Any], indices: torch.Tensor) -> int | None:
    """Where the dimension that was searched still stands in the indices."""
    if indices.dim() != args[0].dim() or indices.dim() == 0:
        return None  # a maximum whose dimension is gone, or one over everything
    place = 2 if name == "topk" else 1
    dim: int = kwargs["dim"] if "dim" in kwargs else args[place] if len(args) > place else -1
    return dim
