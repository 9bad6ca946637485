"""A model as marked layers and what lies between them, found by running it; no line for any architecture.

transformers marks the layers of its stacks as `GradientCheckpointingLayer`. A run of the model is then a list of
calls of layers; what is computed outside of them (embeddings, norms between stacks, the head) is the glue. Layers may
run more than once, take several inputs that follow from parameters, and return several tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from hesscli.checkpoint.layers import marked_layers
from hesscli.curvature.losses import constant_inputs, positions_at_once, scores
from hesscli.curvature.substituted import run_with

if TYPE_CHECKING:
    from hesscli.curvature.risk import EmpiricalRisk

Forward = Callable[..., Any]
Replacement = Callable[[nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]

_ROUNDINGS = 100.0  # of the largest score: sound heads differ by ten at most
_TOKEN_INPUTS = ("input_ids", "decoder_input_ids")


class UnknownStructureError(Exception):
    """The model cannot be taken layer by layer; the text says why."""


class Reached(Exception):  # noqa: N818 - control flow: the forward pass has come far enough
    """The last layer has run."""


@dataclass(frozen=True, slots=True)
class _Output:
    """The form of what one call of a layer returned."""

    spec: TreeSpec
    leaves: tuple[Any, ...]
    first: int
    """The place of the hidden states among the leaves."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The marked layers of a model, how often they run, and whether its head takes tokens one by one."""

    model: nn.Module
    layers: tuple[nn.Module, ...]
    outputs: tuple[_Output, ...]
    """One for each call of a layer, in the order of a run."""
    num_classes: int
    token_inputs: tuple[str, ...]
    """What the head is run with where it is a function of one token's hidden states; empty where it is not."""

    def last_hidden(self, inputs: dict[str, Any], weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The last layer's output, (rows, positions, width), before the head; with a graph where grad is on."""
        left = len(self.outputs)

        def stop_at_the_end(_layer: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal left
            out, left = forward(*args, **kwargs), left - 1
            if not left:
                raise Reached(tree_leaves(out)[self.outputs[-1].first])
            return out

        with intercepted(self.layers, stop_at_the_end):
            try:
                run_with(self.model, weights or {}, kwargs=inputs)
            except Reached as reached:
                last: torch.Tensor = reached.args[0]
                return last
        msg = "the last layer did not run"
        raise UnknownStructureError(msg)

    def count_calls(self, inputs: dict[str, Any]) -> int:
        """How often layers run for these inputs, their first row alone."""
        count = 0

        def counting(_layer: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal count
            count += 1
            return forward(*args, **kwargs)

        row = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        with torch.no_grad(), intercepted(self.layers, counting):
            self.model(**row)
        return count

    def chunks(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """These positions, so many at a time that their scores stay small."""
        return positions.split(positions_at_once(self.num_classes))

    def head(self, hidden: torch.Tensor, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Scores (tokens, classes) from the last layer's output (tokens, width): each token a row of its own.

        The model runs with its layers left out; `weights` by name stand in for its own.
        """
        calls = iter(self.outputs)

        def pass_on(_layer: nn.Module, _forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            output = next(calls)
            given = hidden.unsqueeze(1) if output is self.outputs[-1] else first_tensor((args, kwargs))
            leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in output.leaves]
            leaves[output.first] = given
            return tree_unflatten(leaves, output.spec)

        ids = torch.zeros((len(hidden), 1), dtype=torch.long, device=hidden.device)
        with intercepted(self.layers, pass_on):
            inputs = dict.fromkeys(self.token_inputs, ids) | constant_inputs(self.model)
            return scores(lambda **given: run_with(self.model, weights or {}, kwargs=given), inputs).squeeze(1)


def find_stack(row: "EmpiricalRisk") -> Stack:
    """The stack of the model of a risk, by running it on the risk's first batch: a forward pass and a head.

    Raises UnknownStructureError where there is no layer or none runs.
    """
    model = row.model
    marked = marked_layers(model)
    if not marked:
        msg = f"{type(model).__name__} has no list of layers"
        raise UnknownStructureError(msg)
    outputs: list[_Output] = []
    last: list[torch.Tensor] = []

    def watch(_layer: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = forward(*args, **kwargs)
        leaves, spec = tree_flatten(out)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        if not places:
            msg = "a layer returns no hidden states"
            raise UnknownStructureError(msg)
        shape = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        kept = tuple(leaves[i] if i in places else s for i, s in enumerate(shape))
        outputs.append(_Output(spec, tuple(_empty(leaf) for leaf in kept), places[0]))
        last[:] = [leaves[places[0]]]
        return out

    inputs = row.inputs(row.batches[0])
    with torch.no_grad():
        with intercepted(marked, watch):
            whole = scores(model, inputs)
        if not outputs:
            msg = "none of its layers runs"
            raise UnknownStructureError(msg)
        tokens = tuple(name for name in _TOKEN_INPUTS if name in inputs)
        stack = Stack(model, tuple(marked), tuple(outputs), whole.shape[-1], tokens)
        if tokens and _takes_tokens_alone(stack, last[0], whole):
            return stack
    return replace(stack, token_inputs=())


def _empty(leaf: Any) -> Any:
    return leaf.new_empty(0) if isinstance(leaf, torch.Tensor) else leaf


def _takes_tokens_alone(stack: Stack, last: torch.Tensor, whole: torch.Tensor) -> bool:
    # Of a row of one token a classifier's head cannot be told from one that takes tokens alone.
    if last.dim() != 3 or last.shape[:2] != whole.shape[:2] or last.shape[1] == 1 or not bool(whole.isfinite().all()):
        return False
    try:
        again = stack.head(last.flatten(0, 1)).to(whole.device)  # scores of a run come to the device of its inputs
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model's own code, on inputs that it was not written for
        return False
    allowed = min(0.05, _ROUNDINGS * torch.finfo(whole.dtype).eps)
    return torch.allclose(again, whole.flatten(0, 1), rtol=0.0, atol=allowed * float(whole.abs().max()))


def first_tensor(tree: Any) -> torch.Tensor | None:
    """The first floating-point tensor in a layer's arguments: its hidden states."""
    return next((x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_floating_point()), None)


@contextmanager
def intercepted(layers: Sequence[nn.Module], replacement: Replacement) -> Iterator[None]:
    """For the block, layers run `replacement(layer, its forward, args, kwargs)`, but for a layer within a layer."""
    kept = [layer.__dict__.get("forward") for layer in layers]
    inside = False

    def outermost(layer: nn.Module, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return forward(*args, **kwargs)
            inside = True
            try:
                return replacement(layer, forward, args, kwargs)
            finally:
                inside = False

        return call

    try:
        for layer in layers:
            layer.forward = outermost(layer, layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, kept, strict=True):
            del layer.forward
            if forward is not None:  # a device hook of accelerate
                layer.forward = forward
