"""The exact Hessian, forward over reverse, one layer at a time: below a plain gradient's memory.

A sweep forward with pairs (h, dh) keeps the pairs at the layers' boundaries; a sweep back with pairs (g, dg) makes
each layer again: (g, dg), (_, Hv_l) = jvp(vjp(f_l)) at (h, W_l, g) along (dh, v_l, dg) (Pearlmutter 1994, taken layer
by layer). The head runs in chunks of tokens, so (tokens, vocabulary) never exists.

Cost in gradients: 4 for a product (forward 3 units, back 9, against 3 for a gradient).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vjp
from torch.utils._pytree import tree_map

from hesscli.curvature.losses import cross_entropy, twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.stack import Call, Stack, UnknownStructureError
from hesscli.data.slice import IGNORED, Batch
from hesscli.linalg.space import ParameterSpace, ParameterVector

Tensors = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # a value and its tangent

# Entries of one chunk's scores over the vocabulary (64 MiB in float32), and the tokens of a chunk at the most:
# the model makes an attention mask for the chunk although no layer runs.
_CHUNK_ENTRIES, _CHUNK_TOKENS = 1 << 24, 1024


class LayeredHessianOperator:
    """The Hessian of a risk whose model is a stack of marked layers.

    Holds beside weights and vectors: the pairs at the boundaries, and one layer's activations with their tangents.
    """

    def __init__(self, risk: EmpiricalRisk, stack: Stack) -> None:
        self.risk, self._stack = risk, stack
        self._places = {name: i for i, name in enumerate(risk.space.names)}

    @property
    def space(self) -> ParameterSpace:
        """The selected parameters."""
        return self.risk.space

    def matvec(self, v: ParameterVector) -> ParameterVector:
        """H v: 4 gradients."""
        total = self.space.zeros()
        with twice_differentiable_attention():
            for batch in (b for b in self.risk.batches if b.num_terms):
                _BatchProduct(self.risk, self._stack, self._places, v, total).add(batch)
        self.space.scale(1.0 / self.risk.num_terms, total)
        return total

    def matvecs(self, vs: Sequence[ParameterVector]) -> list[ParameterVector]:
        """H v for each v, one after the other: 4 gradients each."""
        return [self.matvec(v) for v in vs]


class _BatchProduct:
    """One batch's product with one vector, added into `total`."""

    def __init__(
        self,
        risk: EmpiricalRisk,
        stack: Stack,
        places: Mapping[str, int],
        v: ParameterVector,
        total: ParameterVector,
    ) -> None:
        self._stack, self._places, self._v, self._total = stack, places, v, total
        self._weights = {name: p.detach() for name, p in risk.model.named_parameters()}
        self._input_device = risk.input_device
        self._swept = set(stack.prefix_parameters).union(
            *(stack.layer_parameters(i).values() for i in range(len(stack.layers)))
        )

    def add(self, batch: Batch) -> None:
        inputs = {name: value.to(self._input_device) for name, value in batch.inputs.items()}
        boundaries: list[tuple[torch.Tensor, torch.Tensor, Call]] = []
        hidden, d_hidden = self._sweep_forward(inputs, boundaries)
        g, dg = self._through_head(hidden, d_hidden, batch.targets)
        for layer in reversed(range(len(boundaries))):
            h, dh, call = boundaries.pop()
            g, dg = self._through_layer(layer, call, (h, dh), (g, dg))
        self._through_prefix(inputs, (g, dg))

    def _sweep_forward(self, inputs: Tensors, boundaries: list[tuple[torch.Tensor, torch.Tensor, Call]]) -> Pair:
        """(h_L, dh_L); appends (h_l, dh_l, call) for each layer. 3 units, no graph."""

        def keep(_layer: int, hidden: torch.Tensor, call: Call) -> None:
            boundaries.append((*_pair(hidden), _without_tangents(call)))

        with torch.no_grad(), forward_ad.dual_level():
            duals = {
                # A weight that is read without a gradient would have a tangent all the same: no_grad does not stop it.
                name: forward_ad.make_dual(w, self._tangent(name)) if name in self._places.keys() & self._swept else w
                for name, w in self._weights.items()
            }
            return _pair(self._stack.run(duals, inputs, keep))

    def _through_head(self, hidden: torch.Tensor, d_hidden: torch.Tensor, targets: torch.Tensor) -> Pair:
        """The gradient with respect to h_L and its tangent; positions without a term have neither."""
        g, dg = torch.zeros_like(hidden), torch.zeros_like(hidden)
        rows = (targets != IGNORED).flatten().nonzero().squeeze(1).to(hidden.device)
        labels = targets.flatten().to(hidden.device)
        width = hidden.shape[-1]
        weights, tangents = self._selected(self._stack.head_parameters)
        for chunk in rows.split(self._chunk_tokens()):

            def loss(h: torch.Tensor, w: Tensors, wanted: torch.Tensor = labels[chunk]) -> torch.Tensor:
                return cross_entropy(self._stack.head({**self._weights, **w}, h), wanted).sum()

            at = (hidden.view(-1, width)[chunk], weights)
            along = (d_hidden.view(-1, width)[chunk], tangents)
            (part, _), (d_part, products) = _jvp(grad(loss, argnums=(0, 1)), at, along)
            g.view(-1, width)[chunk] = part
            dg.view(-1, width)[chunk] = d_part
            self._collect(products)
        return g, dg

    def _chunk_tokens(self) -> int:
        vocabulary = self._stack.vocab_size
        return max(1, min(_CHUNK_TOKENS, _CHUNK_ENTRIES // vocabulary))

    def _through_layer(
        self,
        layer: int,
        call: Call,
        at: tuple[torch.Tensor, torch.Tensor],
        cotangent: tuple[torch.Tensor, torch.Tensor],
    ) -> Pair:
        """(g_l, dg_l) from (g_{l+1}, dg_{l+1}); the layer is made again: 9 units."""
        module, names = self._stack.layers[layer], self._stack.layer_parameters(layer)
        fixed = {inside: self._weights[name] for inside, name in names.items()}
        weights, tangents = self._selected(names.values())
        inside_of = {name: inside for inside, name in names.items()}

        def f(h: torch.Tensor, w: Tensors) -> torch.Tensor:
            own = {**fixed, **{inside_of[name]: value for name, value in w.items()}}
            return call.apply(lambda *args, **kwargs: functional_call(module, own, args, kwargs), h)

        (g, _), (dg, products) = _pull_back(f, (at[0], weights), cotangent[0], (at[1], tangents), cotangent[1])
        self._collect(products)
        return g, dg

    def _through_prefix(self, inputs: Tensors, cotangent: Pair) -> None:
        weights, tangents = self._selected(self._stack.prefix_parameters)
        if not weights:
            return

        def f(w: Tensors) -> torch.Tensor:
            return self._stack.prefix({**self._weights, **w}, inputs)

        _, (products,) = _pull_back(f, (weights,), cotangent[0], (tangents,), cotangent[1])
        self._collect(products)

    def _tangent(self, name: str) -> torch.Tensor:
        return self._v[self._places[name]].to(self._weights[name].dtype)

    def _selected(self, names: Any) -> tuple[Tensors, Tensors]:
        """Weights among these that the operator is over, and the vector's parts for them."""
        chosen = [name for name in names if name in self._places]
        return {n: self._weights[n] for n in chosen}, {n: self._tangent(n) for n in chosen}

    def _collect(self, products: Tensors) -> None:
        for name, product in products.items():
            part = self._total[self._places[name]]
            part.add_(product.to(part.dtype))


def _pull_back(
    f: Callable[..., torch.Tensor],
    at: tuple[Any, ...],
    cotangent: torch.Tensor,
    along: tuple[Any, ...],
    d_cotangent: torch.Tensor,
) -> tuple[Any, Any]:
    """The vector-Jacobian product of f at a point, and its derivative along (the point's, the cotangent's) tangent.

    Grad mode stays on: without it SiLU's backward is not taken apart, and has no forward derivative.
    """

    def pull(*point: Any) -> Any:
        *arguments, g = point
        return vjp(f, *arguments)[1](g)

    return _jvp(pull, (*at, cotangent), (*along, d_cotangent))


def _jvp(f: Callable[..., Any], at: tuple[Any, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
    pair: Any = jvp(f, at, along)  # a triple only with has_aux
    return pair[0], pair[1]


def _pair(hidden: torch.Tensor) -> Pair:
    primal, tangent = forward_ad.unpack_dual(hidden)
    return primal.detach(), torch.zeros_like(primal) if tangent is None else tangent.detach()


def _without_tangents(call: Call) -> Call:
    """The call as it stands; other inputs that depend on the parameters are not understood here."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            primal, tangent = forward_ad.unpack_dual(leaf)
            if tangent is not None:
                msg = "layers share an input that depends on the parameters"
                raise UnknownStructureError(msg)
            return primal.detach()
        return leaf

    return Call(tree_map(plain, call.args), tree_map(plain, call.kwargs), call.by_name)
