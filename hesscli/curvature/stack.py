"""A model as prefix, layers and head: h_0 = prefix(W), h_{l+1} = f_l(h_l, W_l), S = head(h_L, W).

transformers marks the layers of its stacks as `GradientCheckpointingLayer`. Nothing else of an architecture is
known here: layers are found by running the model once, and the pieces are obtained by replacing the layers'
`forward` for a moment. Where the pieces do not compose to the model, `find_stack` says why.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from hesscli.curvature.losses import scores
from hesscli.data.slice import Batch

Forward = Callable[..., Any]


class UnknownStructureError(Exception):
    """The model is not a single stack of marked layers between a prefix and a head; the text says what it is."""


class _Reached(Exception):  # noqa: N818 - control flow: the forward pass has come far enough
    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer was called with beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: str | None
    """The keyword that carried the hidden states, None where they came first."""

    def apply(self, forward: Forward, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's first output for these hidden states."""
        if self.by_name is not None:
            return _first(forward(*self.args, **{**self.kwargs, self.by_name: hidden}))
        return _first(forward(hidden, *self.args, **self.kwargs))


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers in the order in which they run, and which parameters each piece reads, by name in the model."""

    model: nn.Module
    layers: tuple[nn.Module, ...]
    layer_names: tuple[str, ...]
    prefix_parameters: tuple[str, ...]
    head_parameters: tuple[str, ...]

    def layer_parameters(self, layer: int) -> dict[str, str]:
        """The name inside a layer of each of its parameters -> its name in the model."""
        inside = dict(self.layers[layer].named_parameters())
        return {name: f"{self.layer_names[layer]}.{name}" for name in inside}

    def prefix(self, weights: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """h_0: the model up to its first layer."""

        def stop(hidden: torch.Tensor, _call: Call) -> Any:
            raise _Reached(hidden)

        with _forwards(self.layers[:1], lambda _layer, _original: stop):
            try:
                functional_call(self.model, weights, kwargs={**inputs, "use_cache": False})
            except _Reached as reached:
                return reached.hidden
        msg = "the first layer did not run"
        raise UnknownStructureError(msg)

    def head(self, weights: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Logits (tokens, vocabulary) from the last layer's output (tokens, width)."""
        given = hidden.unsqueeze(0)

        def replace(layer: nn.Module, _original: Forward) -> Any:
            last = layer is self.layers[-1]
            return lambda h, _call: given if last else h

        ids = torch.zeros(given.shape[:2], dtype=torch.long, device=self.input_device)
        with _forwards(self.layers, replace):
            inputs = {"input_ids": ids, "use_cache": False}
            return scores(lambda **given: functional_call(self.model, weights, kwargs=given), inputs)[0]

    def run(
        self,
        weights: dict[str, torch.Tensor],
        inputs: dict[str, torch.Tensor],
        at_layer: Callable[[int, torch.Tensor, Call], None],
    ) -> torch.Tensor:
        """h_L: the model up to the end of its last layer; `at_layer` sees each layer's input."""
        places = {id(layer): i for i, layer in enumerate(self.layers)}

        def replace(layer: nn.Module, original: Forward) -> Any:
            place = places[id(layer)]

            def forward(hidden: torch.Tensor, call: Call) -> Any:
                at_layer(place, hidden, call)
                out = call.apply(original, hidden)
                if place == len(self.layers) - 1:
                    raise _Reached(out)
                return out

            return forward

        with _forwards(self.layers, replace):
            try:
                functional_call(self.model, weights, kwargs={**inputs, "use_cache": False})
            except _Reached as reached:
                return reached.hidden
        msg = "the last layer did not run"
        raise UnknownStructureError(msg)

    @property
    def input_device(self) -> torch.device:
        """Where input_ids go."""
        return _device(self.model)

    @property
    def vocab_size(self) -> int:
        """Scores per token that the head gives, by the rows of the input embeddings."""
        embeddings: Any = self.model.get_input_embeddings
        return int(embeddings().weight.shape[0])


def find_stack(model: nn.Module, batch: Batch) -> Stack:
    """The model's stack, checked by running it on the first row of a batch: 5 forward passes of one row.

    Raises UnknownStructureError where layers are not marked, do not form one chain, pass on more than hidden
    states, or where prefix, layers and head do not give the model's own logits.
    """
    inputs = {name: value[:1].to(_device(model)) for name, value in batch.inputs.items()}
    weights = {name: p.detach() for name, p in model.named_parameters()}
    marked = {name: m for name, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)}
    if not marked:
        msg = f"{type(model).__name__} marks no layer"
        raise UnknownStructureError(msg)
    order: list[nn.Module] = []
    ends: list[torch.Tensor] = []

    def watch(layer: nn.Module, original: Forward) -> Any:
        def forward(hidden: torch.Tensor, call: Call) -> Any:
            if layer in order:
                _refuse(f"{type(layer).__name__} runs twice")
            if ends and hidden is not ends[-1]:
                _refuse("something happens between two layers")
            out = call.apply(original, hidden)
            order.append(layer)
            ends.append(out)
            return out

        return forward

    with torch.no_grad():
        whole = scores(model, {**inputs, "use_cache": False})[0]
        with _forwards(list(marked.values()), watch):
            functional_call(model, weights, kwargs={**inputs, "use_cache": False})
        names = {id(m): name for name, m in marked.items()}
        own = [f"{names[id(m)]}.{p}" for m in order for p, _ in m.named_parameters()]
        if len(set(own)) < len(own) or not set(own) <= weights.keys():
            _refuse("layers share weights")
        rest = [name for name in weights if name not in own]
        stack = Stack(model, tuple(order), tuple(names[id(m)] for m in order), tuple(rest), tuple(rest))
        calls: list[tuple[torch.Tensor, Call]] = []
        last = stack.run(weights, inputs, lambda _i, hidden, call: calls.append((hidden, call)))
        if not torch.equal(stack.prefix(weights, inputs), calls[0][0]):
            _refuse("the prefix does not give the first layer's input")
        again = torch.cat([stack.head(weights, part) for part in last[0].split(max(1, last.shape[1] // 2))])
        if not torch.allclose(again, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
            _refuse("the head is not a function of one token's hidden state")
    return Stack(model, stack.layers, stack.layer_names, *_used(stack, weights, inputs, last, rest))


def _used(
    stack: Stack, weights: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor], last: torch.Tensor, rest: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of the parameters outside the layers the prefix reads, and which the head reads."""
    leaves = {name: weights[name].detach().requires_grad_() for name in rest}
    out: list[tuple[str, ...]] = []
    for piece in (stack.prefix({**weights, **leaves}, inputs), stack.head({**weights, **leaves}, last[0, :1].detach())):
        if not piece.requires_grad:
            out.append(())
            continue
        grads = torch.autograd.grad(piece.sum(), list(leaves.values()), allow_unused=True)
        out.append(tuple(name for name, g in zip(leaves, grads, strict=True) if g is not None))
    return out[0], out[1]


@contextmanager
def _forwards(layers: Sequence[nn.Module], replacement: Callable[[nn.Module, Forward], Any]) -> Iterator[None]:
    """For the block, layers run what `replacement(layer, its forward)` returns, called with (hidden, Call)."""
    kept = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _taking_apart(replacement(layer, layer.forward))
        yield
    finally:
        for layer, forward in zip(layers, kept, strict=True):
            del layer.forward
            if forward is not None:  # a device hook of accelerate
                layer.forward = forward


def _taking_apart(forward: Callable[[torch.Tensor, Call], Any]) -> Forward:
    def call(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            return forward(args[0], Call(args[1:], kwargs, None))
        if isinstance(kwargs.get("hidden_states"), torch.Tensor):
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            return forward(kwargs["hidden_states"], Call(args, rest, "hidden_states"))
        return _refuse("a layer is called without hidden states")

    return call


def _first(out: Any) -> torch.Tensor:
    """The hidden states of a layer's output, the only tensor that may follow from the parameters."""
    if isinstance(out, torch.Tensor):
        return out
    tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    if not isinstance(out, tuple) or len(tensors) != 1:
        return _refuse("a layer returns more than hidden states")
    first: torch.Tensor = tensors[0]
    return first


def _refuse(reason: str) -> Any:
    raise UnknownStructureError(reason)


def _device(model: nn.Module) -> torch.device:
    embeddings: Any = model.get_input_embeddings  # typed as a tensor by nn.Module
    device: torch.device = embeddings().weight.device
    return device
