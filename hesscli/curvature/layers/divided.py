"""Modules within a layer whose weights come a portion at a time: mixtures of experts that no device holds as a whole.

The output of such a module is a sum over portions, f(x) = sum_i f_i(x, W_i): of stacked experts over groups of them, of
a module of its own over itself. Autograd sees the sum as one operation. Each of its derivatives goes over the portions
again, makes one anew while its weights are there, and lets go of it:

    back    J_x^T g, and J_W^T g, which is added up where results are and not returned
    twice   the derivative of <J_x^T g, t> + <J_W^T g, v> with respect to x, g and W

so that a layer's recomputation under forward over reverse holds one portion, with its part of one vector and of one
result. With one vector experts cost 19 units, where a layer that is whole costs 12, and their weights pass five times
in place of two; with k vectors 4 + 15 k units for 4 + 8 k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hesscli.curvature.layers.push_layer import float_places

GATE = "portions_are_reached"
"""The buffer of such a module that stands for its weights among a layer's leaves: its tangent is 1 where they move."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Some of a module's weights: these rows of each, or all where there are no rows."""

    rows: slice | None


@dataclass(frozen=True, slots=True)
class Opened:
    """The weights of a portion while it runs: by name in the module the place of a selected one, and the tensor."""

    portion: Portion
    weights: Mapping[str, tuple[int | None, torch.Tensor]]


class Vectors(Protocol):
    """Where a sweep's vectors come from and its results go to."""

    def along(self, place: int, rows: slice | None, k: int) -> torch.Tensor | None:
        """These rows of vector k's part as the weight needs them; None where the part is zero."""

    def collect(self, place: int, rows: slice | None, k: int | None, product: torch.Tensor) -> None:
        """Add to these rows of the k-th result's part; None is the gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What the module was called with."""

    leaves: list[Any]
    spec: TreeSpec
    places: tuple[int, ...]
    """Of what derivatives are taken with respect to."""


class Divided:
    """Stands in for a module's forward; `open` brings the weights of portions one after the other.

    A sweep sets `vectors` while the layer is open, and `turn` to the number of the vector whose turn it is: forward
    mode takes weights along it, and what comes back for weights is `collecting` for it, for the gradient where the turn
    is nobody's.
    """

    def __init__(
        self,
        module: nn.Module,
        portions: Sequence[Portion],
        places: Mapping[str, int],
        opened: Callable[[Sequence[Portion]], Iterator[Opened]],
    ) -> None:
        self._module, self._forward, self._portions = module, module.forward, portions
        self.places, self._opened = places, opened
        self.vectors: Vectors | None = None
        self.turn: int | None = None
        self.collecting = False

    @property
    def gate(self) -> torch.Tensor:
        """What stands for the weights: it has a gradient function, and no gradient."""
        gate = self._module._buffers[GATE]
        assert gate is not None
        return gate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output: under a graph as one operation."""
        leaves, spec = tree_flatten((args, kwargs))
        places = tuple(i for i in float_places(leaves) if leaves[i].requires_grad)
        if torch.is_grad_enabled() and (places or self.places):
            kept = [x.detach() if isinstance(x, torch.Tensor) else x for x in leaves]
            return _Sum.apply(self, _Call(kept, spec, places), self.gate, *(leaves[i] for i in places))
        return self.value(_Call(leaves, spec, ()), ())

    def value(self, call: _Call, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sum, without a graph; in forward mode along the vector whose turn it is."""
        total = None
        for opened in self._opened(self._reached(call)):
            weights = {name: self._dual(opened, place, weight) for name, (place, weight) in opened.weights.items()}
            part = self._run(opened.portion, call, values, weights)
            total = part if total is None else total + part
        assert total is not None
        return total

    def pull(self, call: _Call, values: Sequence[torch.Tensor], g: torch.Tensor) -> list[torch.Tensor | None]:
        """J_x^T g for each value; J_W^T g is collected."""
        sums: list[torch.Tensor | None] = [None] * len(values)
        for opened in self._opened(self._reached(call)):
            at, own, out = self._made(opened, call, values)
            if out.requires_grad:
                found = torch.autograd.grad(out, [*at, *own.values()], g, allow_unused=True)
                self._collect(opened, own, found[len(at) :])
                sums = _added(sums, found[: len(at)])
        return sums

    def pull_twice(
        self,
        call: _Call,
        values: Sequence[torch.Tensor],
        g: torch.Tensor,
        ts: Sequence[torch.Tensor | None],
        *,
        moving: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """The derivative of <J_x^T g, t>, and where weights are `moving` of <J_W^T g, v>, by g and by the values.

        What it is by W is collected.
        """
        sums: list[torch.Tensor | None] = [None] * (1 + len(values))
        for opened in self._opened(self._reached(call)):
            at, own, out = self._made(opened, call, values)
            if not out.requires_grad:
                continue
            cotangent = g.detach().requires_grad_()
            q = torch.autograd.grad(out, [*at, *own.values()], cotangent, create_graph=True, allow_unused=True)
            along = [*ts, *(self._along(opened, name) if moving else None for name in own)]
            pairs = [(a, t) for a, t in zip(q, along, strict=True) if a is not None and t is not None]
            pairs = [(a, t.to(a.dtype)) for a, t in pairs if a.requires_grad]
            if pairs:
                leaves = [cotangent, *at, *own.values()]
                found = torch.autograd.grad([a for a, _ in pairs], leaves, [t for _, t in pairs], allow_unused=True)
                self._collect(opened, own, found[1 + len(at) :])
                sums = _added(sums, found[: 1 + len(at)])
            del q, along, pairs
        return sums[0], sums[1:]

    def _reached(self, call: _Call) -> Sequence[Portion]:
        """Those that a token goes to; one, whose output is zero, where there is none."""
        index = _index(call.leaves)
        if index is None:
            return self._portions
        if index.is_meta:  # a count of bytes: one and the next stand for all
            return self._portions[:2]
        hit = [p for p in self._portions if p.rows is None or bool(_inside(index, p.rows).any())]
        return hit or self._portions[:1]

    def _made(
        self, opened: Opened, call: _Call, values: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        """A portion again, with a graph back to its values and its selected weights."""
        with torch.enable_grad():
            at = [x.detach().requires_grad_() for x in values]
            weights = {name: weight.detach() for name, (_, weight) in opened.weights.items()}
            own = {name: weights[name].requires_grad_() for name in weights if name in self.places}
            return at, own, self._run(opened.portion, call, at, weights)

    def _run(
        self, portion: Portion, call: _Call, values: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        leaves = list(call.leaves)
        for place, value in zip(call.places, values, strict=True):
            leaves[place] = value
        module: Any = self._module
        whole = getattr(module, "num_experts", None)
        if portion.rows is not None:
            # A module passes over the number that comes after its experts': that is the others' here.
            count, (place, index) = (portion.rows.stop - portion.rows.start, _indexed(leaves))
            leaves[place] = torch.where(_inside(index, portion.rows), index - portion.rows.start, count)
            module.num_experts = count
        args, kwargs = tree_unflatten(leaves, call.spec)
        try:
            found = functional_call(_AsWritten(module, self._forward), _under("module", weights), args, kwargs)
        finally:
            if portion.rows is not None:
                module.num_experts = whole
        if not isinstance(found, torch.Tensor):
            msg = f"{type(module).__name__} returns more than a tensor, and its weights are not there all at once"
            raise RuntimeError(msg)
        return found

    def _dual(self, opened: Opened, place: int | None, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.detach()
        if place is None or self.vectors is None or self.turn is None:
            return weight
        part = self.vectors.along(place, opened.portion.rows, self.turn)
        return weight if part is None else forward_ad.make_dual(weight, part)

    def _along(self, opened: Opened, name: str) -> torch.Tensor | None:
        if self.vectors is None or self.turn is None:
            return None
        return self.vectors.along(self.places[name], opened.portion.rows, self.turn)

    def _collect(
        self, opened: Opened, own: Mapping[str, torch.Tensor], products: Sequence[torch.Tensor | None]
    ) -> None:
        if self.collecting and self.vectors is not None:
            for name, product in zip(own, products, strict=True):
                if product is not None:
                    self.vectors.collect(self.places[name], opened.portion.rows, self.turn, product)


def divided_in(layer: nn.Module) -> dict[str, Divided]:
    """By name within the layer, those of its modules whose weights come a portion at a time."""
    named = ((name, module.__dict__.get("forward")) for name, module in layer.named_modules())
    return {name: forward for name, forward in named if isinstance(forward, Divided)}


def parts_of(layer: nn.Module, *, most: int) -> dict[str, tuple[nn.Module, list[Portion]]]:
    """By name within a layer the modules whose weights can come a portion at a time, and portions of `most` bytes.

    Stacked experts, as transformers has them since version 5: a module whose every weight has a row for each of its
    `num_experts`, and which passes over tokens of none of them; and experts that are modules, in a list of that name.
    """
    found: dict[str, tuple[nn.Module, list[Portion]]] = {}
    for name, module in layer.named_modules():
        if any(name.startswith(f"{other}.") for other in found):
            continue
        count = getattr(module, "num_experts", None)
        if isinstance(count, int) and count > 1 and _is_stacked(module, count):
            each = sum(p.nbytes for p in module.parameters()) // count
            size = max(1, most // max(1, each))
            found[name] = (module, [Portion(slice(a, min(a + size, count))) for a in range(0, count, size)])
        elif isinstance(module, nn.ModuleList) and "expert" in name.rpartition(".")[2]:
            some = {
                f"{name}.{own}": part for own, part in module.named_children() if any(True for _ in part.parameters())
            }
            found |= {own: (part, [Portion(None)]) for own, part in some.items()}
    return found


def _is_stacked(module: Any, count: int) -> bool:
    """Whether weights are by expert, and tokens of the number after the last expert's are passed over.

    That is tried with one expert, all of NaN, and tokens of the number after it.
    """
    named = dict(module.named_parameters())
    if not named or any("." in name or p.dim() < 2 or len(p) != count for name, p in named.items()):
        return False
    one = {name: torch.full((1,), torch.nan, dtype=p.dtype).expand(1, *p.shape[1:]) for name, p in named.items()}
    tokens = torch.zeros((2, 1), dtype=next(iter(one.values())).dtype)
    try:
        module.num_experts = 1
        with torch.no_grad():
            found = functional_call(
                module, one, (tokens, torch.ones((2, 1), dtype=torch.long), torch.ones_like(tokens))
            )
    except Exception:  # the model's own code, run in another way than it was written for
        return False
    finally:
        module.num_experts = count
    return isinstance(found, torch.Tensor) and not bool(found.isnan().any())


class _AsWritten(nn.Module):
    """A module with the forward that its class has."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self._forward = module, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


class _Sum(torch.autograd.Function):
    """The sum over portions, as one operation of its values; the gate has it made where no value moves."""

    @staticmethod
    def forward(ctx: Any, divided: Divided, call: _Call, _gate: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        ctx.divided, ctx.call = divided, call
        ctx.save_for_backward(*values)
        return divided.value(call, values)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        values = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return (None, None, *_Pull.apply(ctx.divided, ctx.call, ctx.divided.gate, g, *values))
        return None, None, None, *ctx.divided.pull(ctx.call, values, g)


class _Pull(torch.autograd.Function):
    """J_x^T g, and a zero before it that stands for J_W^T g."""

    @staticmethod
    def forward(
        ctx: Any, divided: Divided, call: _Call, gate: torch.Tensor, g: torch.Tensor, *values: torch.Tensor
    ) -> Any:
        ctx.divided, ctx.call = divided, call
        ctx.save_for_backward(g, *values)
        ctx.set_materialize_grads(False)
        found = divided.pull(call, values, g)
        return (
            torch.zeros_like(gate),
            *(torch.zeros_like(x) if q is None else q for q, x in zip(found, values, strict=True)),
        )

    @staticmethod
    def backward(ctx: Any, moving: torch.Tensor | None, *ts: torch.Tensor | None) -> Any:
        if torch.is_grad_enabled():
            msg = "a sum over portions of weights has two derivatives, and no third"
            raise RuntimeError(msg)
        g, *values = ctx.saved_tensors
        by_g, by_values = ctx.divided.pull_twice(ctx.call, values, g, ts, moving=moving is not None)
        return None, None, None, by_g, *by_values


def _index(leaves: Sequence[Any]) -> torch.Tensor | None:
    found = [x for x in leaves if isinstance(x, torch.Tensor) and not (x.is_floating_point() or x.dtype == torch.bool)]
    return found[0] if len(found) == 1 else None


def _indexed(leaves: Sequence[Any]) -> tuple[int, torch.Tensor]:
    index = _index(leaves)
    if index is None:
        msg = "experts that are fetched in groups are not called with one tensor of their numbers"
        raise RuntimeError(msg)
    return next(i for i, x in enumerate(leaves) if x is index), index


def _inside(index: torch.Tensor, rows: slice) -> torch.Tensor:
    return (index >= rows.start) & (index < rows.stop)


def _under(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}.{own}": weight for own, weight in weights.items()}


def _added(sums: Sequence[torch.Tensor | None], parts: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [a if b is None else b if a is None else a + b for a, b in zip(sums, parts, strict=True)]
