"""First and second derivatives of one piece of a model, from outputs that have a graph back to its leaves."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tangents = Sequence[torch.Tensor | None]  # for each vector, None where it is zero


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a model that has run: outputs with a graph back to leaves.

    The leaves are activations, of which the cotangents are wanted, and then parameters.
    """

    outputs: Sequence[torch.Tensor]
    activations: Sequence[torch.Tensor]
    parameters: Sequence[torch.Tensor]
    tangents: Sequence[Tangents]
    """Of each leaf, activations first."""


def pull_back(
    piece: Piece,
    cotangents: Sequence[torch.Tensor | None],
    d_cotangents: Sequence[Tangents],
    *,
    num_vectors: int,
    keep: bool,
    gradient: bool = False,
) -> tuple[list[torch.Tensor | None], list[list[torch.Tensor | None]]]:
    """g_in = J^T g for each leaf, and J^T dg + (dJ)^T g for each vector and leaf.

    With q(x) = J(x)^T g one backward pass through (q, outputs) with weights (dx, dg) gives both terms: q is the
    gradient of g . f, so its Jacobian is symmetric. Cost in units of a product with the piece's weights: 2 for q,
    6 for each vector. `cotangents` and `d_cotangents` are of each output. The graph is freed unless `keep`.
    J^T g of a parameter is left out where nothing asks for it: neither `gradient` nor a tangent.
    """
    leaves = [*piece.activations, *piece.parameters]
    moving = [any(t is not None for t in per_leaf) for per_leaf in piece.tangents]
    wanted = [i for i in range(len(leaves)) if gradient or moving[i] or i < len(piece.activations)]
    pairs = zip(piece.outputs, cotangents, strict=True)
    given = [(out, g) for out, g in pairs if g is not None and out.requires_grad]
    q: dict[int, torch.Tensor | None] = {}
    if given and wanted:
        grads = torch.autograd.grad(
            [out for out, _ in given],
            [leaves[i] for i in wanted],
            [g for _, g in given],
            create_graph=any(moving),
            retain_graph=keep or num_vectors > 0,
            allow_unused=True,
        )
        q = dict(zip(wanted, grads, strict=True))
    seconds = []
    for k in range(num_vectors):
        both = [(q_i, piece.tangents[i][k]) for i, q_i in q.items() if q_i is not None]
        both += [(out, dg[k]) for out, dg in zip(piece.outputs, d_cotangents, strict=True)]
        seconds.append(_weighted_gradient(both, leaves, keep=keep or k < num_vectors - 1))
    return [None if (q_i := q.get(i)) is None else q_i.detach() for i in range(len(leaves))], seconds


def push_forward(
    output: torch.Tensor, leaves: Sequence[torch.Tensor], tangents: Sequence[Tangents], *, num_vectors: int
) -> list[torch.Tensor | None]:
    """J dx for each vector, as the derivative of J^T u with respect to u; for pieces that are small.

    Needs no forward derivative of any operation, and sees exactly what a backward pass sees: a weight that is
    read without a gradient is a constant here, which forward mode would not know.
    """
    u = torch.zeros_like(output, requires_grad=True)
    moving = [i for i, per_leaf in enumerate(tangents) if any(t is not None for t in per_leaf)]
    if not moving:
        return [None] * num_vectors
    q = torch.autograd.grad(output, [leaves[i] for i in moving], u, create_graph=True, allow_unused=True)
    pushed = []
    for k in range(num_vectors):
        pairs = [(q_i, tangents[i][k]) for i, q_i in zip(moving, q, strict=True) if q_i is not None]
        pushed += _weighted_gradient(pairs, [u], keep=True)
    return pushed


def _weighted_gradient(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor | None]], leaves: Sequence[torch.Tensor], *, keep: bool
) -> list[torch.Tensor | None]:
    """The gradient of sum t . out over the pairs (out, t) that have a t and a graph."""
    along = [(out, t.to(out.dtype)) for out, t in pairs if t is not None and out.requires_grad]
    if not along:
        return [None] * len(leaves)
    outputs, weights = zip(*along, strict=True)
    return list(torch.autograd.grad(outputs, leaves, weights, retain_graph=keep, allow_unused=True))


def graph_nodes(outputs: Iterable[torch.Tensor]) -> Iterator[Any]:
    """The nodes of autograd that a backward pass from these tensors comes to, each once."""
    todo: list[Any] = [out.grad_fn for out in outputs]
    seen: set[Any] = {None}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [after for after, _ in node.next_functions]


def reached(outputs: Iterable[torch.Tensor]) -> set[int]:
    """The ids of the leaves that a backward pass from these tensors comes to.

    A weight that a model reads under no_grad is none of them: it is a constant of the loss, but forward mode, which
    no_grad does not stop, would move it.
    """
    leaves = (getattr(node, "variable", None) for node in graph_nodes(outputs))
    return {id(leaf) for leaf in leaves if leaf is not None}
