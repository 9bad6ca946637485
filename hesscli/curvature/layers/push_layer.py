"""Tangents through a layer and through the head, by forward mode: 2 units for each vector and 1 for the values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from hesscli.curvature.layers.forward_rules import ForwardRules
from hesscli.curvature.layers.pull_back import Tangents, Turn, moves, push_forward

Weights = dict[str, torch.Tensor]
Run = Callable[[Sequence[torch.Tensor], Weights], Any]  # values and weights by name -> the layer's output
Own = dict[str, tuple[torch.Tensor, Tangents]]  # selected parameters by name, with the vectors' parts


class LayerPush:
    """Runs layers with tangents; several vectors at once where every operation of the model allows it.

    With `forward_mode` off no operation is asked for a forward derivative. With `together` off vectors go one by one,
    3 units each, and the parts of one of them are held.
    """

    def __init__(self, *, forward_mode: bool = True, together: bool = True) -> None:
        self._together, self._forward_mode = forward_mode and together, forward_mode

    def __call__(
        self,
        run: Run,
        inputs: Sequence[torch.Tensor],
        along: Sequence[Tangents],
        own: Own,
        *,
        num_vectors: int,
        turn: Turn | None = None,
    ) -> tuple[Any, list[Tangents]]:
        """What the layer returns, without a graph, and the tangents of each floating-point tensor in it.

        With `turn`, which is told whose tangents come next, vectors go one by one.
        """
        values = [x.detach() for x in inputs]
        every = [*along, *(t for _, t in own.values())]
        moving = [k for k in range(num_vectors) if any(moves(t, k) for t in every)]
        with torch.no_grad():
            if not moving:
                out = run(values, {})
                return out, [[None] * num_vectors for _ in float_places(tree_flatten(out)[0])]
            if len(moving) > 1 and self._together and turn is None:
                try:
                    return _together(run, values, along, own, moving, num_vectors)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, ValueError, TypeError):  # an operation that depends on values, or has no rule
                    self._together = False
            if self._forward_mode:
                try:
                    return _one_by_one(run, values, along, own, moving, num_vectors, turn)
                except NotImplementedError:  # an autograd function of the model's own
                    self._forward_mode = False
        return _by_reverse_mode(run, values, along, own, num_vectors, turn)


def _by_reverse_mode(
    run: Run, values: Sequence[torch.Tensor], along: Sequence[Tangents], own: Own, num_vectors: int, turn: Turn | None
) -> tuple[Any, list[Tangents]]:
    """The same where an operation has no forward derivative: 3 units for the values, 2 for each vector."""
    if turn is not None:
        turn(None)
    leaves, spec = tree_flatten(run([x.requires_grad_() for x in values], {}))
    sources = [*values, *(p for p, _ in own.values())]
    every = [*along, *(t for _, t in own.values())]
    tangents: list[Tangents] = []
    for place in float_places(leaves):
        made = leaves[place]
        still: Tangents = [None] * num_vectors
        if made.requires_grad:
            tangents.append(push_forward(made, sources, every, num_vectors=num_vectors, turn=turn))
        else:
            tangents.append(still)
        leaves[place] = made.detach()
    return tree_unflatten(leaves, spec), tangents


def float_places(leaves: Sequence[Any]) -> list[int]:
    """Where floating-point tensors stand."""
    return [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.is_floating_point()]


def _one_by_one(
    run: Run,
    values: Sequence[torch.Tensor],
    along: Sequence[Tangents],
    own: Own,
    moving: list[int],
    num_vectors: int,
    turn: Turn | None,
) -> tuple[Any, list[Tangents]]:
    tangents: list[list[torch.Tensor | None]] = []
    out: Any = None
    for k in moving:
        if turn is not None:
            turn(k)
        with forward_ad.dual_level():
            duals = [_dual(x, t[k]) for x, t in zip(values, along, strict=True)]
            weights = {name: _dual(p.detach(), t[k]) for name, (p, t) in own.items() if moves(t, k)}
            with ForwardRules():
                leaves, spec = tree_flatten(run(duals, weights))
            places = float_places(leaves)
            tangents = tangents or [[None] * num_vectors for _ in places]
            for i, place in enumerate(places):
                leaves[place], tangents[i][k] = forward_ad.unpack_dual(leaves[place])
            del duals, weights  # before the next vector's are made
            out = tree_unflatten(leaves, spec)
    return out, list(tangents)


def _dual(x: torch.Tensor, t: torch.Tensor | None) -> torch.Tensor:
    return x if t is None else forward_ad.make_dual(x, t)


def _together(
    run: Run, values: Sequence[torch.Tensor], along: Sequence[Tangents], own: Own, moving: list[int], num_vectors: int
) -> tuple[Any, list[Tangents]]:
    """One run for all vectors: what does not depend on them is computed once."""
    form: list[Any] = []
    moved = [i for i, t in enumerate(along) if any(moves(t, k) for k in moving)]
    weights = {name: p.detach() for name, (p, t) in own.items() if any(moves(t, k) for k in moving)}

    def f(given: list[torch.Tensor], weights: Weights) -> list[torch.Tensor]:
        at = list(values)
        for i, x in zip(moved, given, strict=True):
            at[i] = x
        with ForwardRules():
            leaves, spec = tree_flatten(run(at, weights))
        places = float_places(leaves)
        form[:] = [[None if i in places else x for i, x in enumerate(leaves)], spec, places]
        return [leaves[i] for i in places]

    def push(d_values: list[torch.Tensor], d_weights: Weights) -> Any:
        return jvp(f, ([values[i] for i in moved], weights), (d_values, d_weights))

    dims: Any = (None, 0)  # the values are the same for all vectors
    primals, pushed = vmap(push, out_dims=dims)(
        [_stacked(values[i], along[i], moving) for i in moved],
        {name: _stacked(p, own[name][1], moving) for name, p in weights.items()},
    )
    leaves, spec, places = form
    tangents: list[list[torch.Tensor | None]] = [[None] * num_vectors for _ in places]
    for i, place in enumerate(places):
        leaves[place] = primals[i]
        for row, k in enumerate(moving):
            tangents[i][k] = pushed[i][row]
    return tree_unflatten(leaves, spec), list(tangents)


def _stacked(x: torch.Tensor, t: Tangents, moving: list[int]) -> torch.Tensor:
    stacked = x.new_zeros((len(moving), *x.shape))
    for row, k in zip(stacked, moving, strict=True):
        if (part := t[k]) is not None:
            row.copy_(part)
    return stacked
