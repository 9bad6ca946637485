"""A pass of FSDP2 whose head takes its tokens in chunks, so that (tokens, classes) is never whole.

FSDP2's hooks know one forward and one backward pass of the outermost module: parameters outside of layers are whole in
between, and their gradients are sent once. So the chunks run inside of that forward, on the model without hooks and
with these whole weights, and are differentiated at once; the pass back finds their gradients made. What is sent is the
same, and so is the cost of a gradient, 3 units.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from hesscli.checkpoint.layers import outermost_layers
from hesscli.curvature.layers.stack import Forward, Reached, Stack, intercepted
from hesscli.curvature.losses import cross_entropy
from hesscli.data.slice import IGNORED, Batch

Weights = dict[str, torch.Tensor]


class ChunkedPass:
    """Passes of a sharded model; `stack` is that of the same model without hooks, whose head takes tokens alone."""

    def __init__(self, model: nn.Module, stack: Stack) -> None:
        self._model, self._stack = model, stack
        self._layers = tuple(outermost_layers(model).values())

    def terms(self, inputs: dict[str, Any], batch: Batch) -> torch.Tensor:
        """The loss at each position, (rows, positions), without a graph."""

        def found(last: torch.Tensor, weights: Weights) -> torch.Tensor:
            hidden, labels = last.flatten(0, 1), batch.targets.flatten().to(last.device)
            chunks = self._stack.chunks(torch.arange(len(labels), device=last.device))
            return torch.cat([cross_entropy(self._stack.head(hidden[c], weights), labels[c]) for c in chunks])

        with torch.no_grad():
            return self._run(inputs, found).view(batch.targets.shape)

    def loss(self, inputs: dict[str, Any], batch: Batch) -> torch.Tensor:
        """The sum of the loss over a batch's terms, with a graph. Holds the head's gradient twice, one in float32."""
        return self._run(inputs, lambda last, weights: self._differentiated(last, weights, batch))

    def _run(self, inputs: dict[str, Any], head: Callable[[torch.Tensor, Weights], torch.Tensor]) -> torch.Tensor:
        """`head` of the last layer's output and of the whole weights outside of layers, as the model's forward."""

        def through(model: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
            last = self._last_hidden(forward, args, kwargs)
            return head(last, {n: p for n, p in model.named_parameters() if not isinstance(p, DTensor)})

        with intercepted([self._model], through):
            found: torch.Tensor = self._model(**inputs)
        return found

    def _last_hidden(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        left = len(self._stack.outputs)

        def stop_at_the_end(_layer: nn.Module, _args: Any, out: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Reached(tree_leaves(out)[self._stack.outputs[-1].first])

        # These run after FSDP2's own, which must see each layer's output.
        hooks = [layer.register_forward_hook(stop_at_the_end) for layer in self._layers]
        try:
            forward(*args, **kwargs)
        except Reached as reached:
            last: torch.Tensor = reached.args[0]
            return last
        finally:
            for hook in hooks:
                hook.remove()
        msg = "the last layer did not run"
        raise RuntimeError(msg)

    def _differentiated(self, last: torch.Tensor, weights: Weights, batch: Batch) -> torch.Tensor:
        hidden, labels = last.detach().flatten(0, 1), batch.targets.flatten().to(last.device)
        own = [p for p in weights.values() if p.requires_grad]
        g, parts = torch.zeros_like(hidden), list[torch.Tensor | None]([None] * len(own))
        terms = (labels != IGNORED).nonzero().squeeze(1)
        # A rank without a term takes a position without one: the same parameters have a gradient on every rank.
        chunks = self._stack.chunks(terms) if len(terms) else (torch.zeros(1, dtype=torch.long, device=last.device),)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for chunk in chunks:
            with torch.enable_grad():
                h = hidden[chunk].requires_grad_()
                loss = cross_entropy(self._stack.head(h, weights), labels[chunk]).sum()
                g[chunk], *found = torch.autograd.grad(loss, [h, *own], allow_unused=True)
            parts = [_sum(part, new) for part, new in zip(parts, found, strict=True)]
            total += loss.detach()
        sources = [x for x in (last, *own) if x.requires_grad]
        found_parts = [None if part is None else part.to(p.dtype) for p, part in zip(own, parts, strict=True)]
        gradients = [g.view_as(last), *found_parts] if last.requires_grad else found_parts
        out: torch.Tensor = _Differentiated.apply(total, gradients, *sources)
        return out


def _sum(part: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    """The sum over chunks, in float32 or wider: narrow gradients of a chunk each would be rounded once more."""
    if new is None:
        return part
    wide = torch.promote_types(new.dtype, torch.float32)
    return new.to(wide, copy=True) if part is None else part.add_(new)


class _Differentiated(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: Sequence[torch.Tensor | None], *_sources: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found, ctx.gradients = ctx.gradients, None
        return None, None, *(None if g is None else g.mul_(scale) for g in found)
