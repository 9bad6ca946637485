"""First and second derivatives of one piece of a model, from outputs that have a graph back to its leaves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tangents = Sequence[torch.Tensor | None]  # for each vector, None where it is zero
Turn = Callable[[int | None], None]


class Brought(Sequence[torch.Tensor | None]):
    """Parts of vectors that lie elsewhere: each is brought when it is looked at, and held by who looks at it alone.

    `bring` makes the part of vector k as it is needed; those that are not `moving` are None and are not brought.
    """

    def __init__(self, bring: Callable[[int], torch.Tensor], moving: Sequence[bool]) -> None:
        self._bring, self.moving = bring, moving

    def __len__(self) -> int:
        return len(self.moving)

    def __getitem__(self, k: Any) -> Any:
        return self._bring(k) if self.moving[k] else None


def moves(tangents: Tangents, k: int) -> bool:
    """Whether there is a tangent for vector k; nothing is brought."""
    return tangents.moving[k] if isinstance(tangents, Brought) else tangents[k] is not None


def moves_any(tangents: Tangents) -> bool:
    """Whether there is one for any vector."""
    return any(moves(tangents, k) for k in range(len(tangents)))


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
    turn: Turn | None = None
    """Told whose tangents and results come next, None before a gradient's."""


def pull_back(
    piece: Piece,
    cotangents: Sequence[torch.Tensor | None],
    d_cotangents: Sequence[Tangents],
    *,
    num_vectors: int,
    keep: bool,
    gradient: bool = False,
) -> tuple[list[torch.Tensor | None], Iterator[list[torch.Tensor | None]]]:
    """g_in = J^T g for each leaf, and J^T dg + (dJ)^T g for each leaf, one vector after the other.

    With q(x) = J(x)^T g one backward pass through (q, outputs) with weights (dx, dg) gives both terms: q is the
    gradient of g . f, so its Jacobian is symmetric. Cost in units of a product with the piece's weights: 2 for q,
    6 for each vector. `cotangents` and `d_cotangents` are of each output. The graph is freed unless `keep`.
    J^T g of a parameter is left out where nothing asks for it: neither `gradient` nor a tangent. The second is to be
    taken to its end; it holds one vector's tangents and results at a time.
    """
    leaves = [*piece.activations, *piece.parameters]
    moving = [moves_any(per_leaf) for per_leaf in piece.tangents]
    wanted = [i for i in range(len(leaves)) if gradient or moving[i] or i < len(piece.activations)]
    pairs = zip(piece.outputs, cotangents, strict=True)
    given = [(out, g) for out, g in pairs if g is not None and out.requires_grad]
    q: dict[int, torch.Tensor | None] = {}
    if piece.turn is not None:
        piece.turn(None)
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

    def second(k: int) -> list[torch.Tensor | None]:
        if piece.turn is not None:
            piece.turn(k)
        both = [(q_i, piece.tangents[i][k]) for i, q_i in q.items() if q_i is not None and q_i.requires_grad]
        both += [(out, dg[k]) for out, dg in zip(piece.outputs, d_cotangents, strict=True)]
        return _weighted_gradient(both, leaves, keep=keep or k < num_vectors - 1)

    first = [None if (q_i := q.get(i)) is None else q_i.detach() for i in range(len(leaves))]
    return first, map(second, range(num_vectors))


def push_forward(
    output: torch.Tensor,
    leaves: Sequence[torch.Tensor],
    tangents: Sequence[Tangents],
    *,
    num_vectors: int,
    turn: Turn | None = None,
) -> list[torch.Tensor | None]:
    """J dx for each vector, as the derivative of J^T u with respect to u; for pieces that are small.

    Needs no forward derivative of any operation, and sees exactly what a backward pass sees: a weight that is
    read without a gradient is a constant here, which forward mode would not know.
    """
    u = torch.zeros_like(output, requires_grad=True)
    moving = [i for i, per_leaf in enumerate(tangents) if moves_any(per_leaf)]
    if not moving:
        return [None] * num_vectors
    if turn is not None:
        turn(None)
    q = torch.autograd.grad(output, [leaves[i] for i in moving], u, create_graph=True, allow_unused=True)

    def along(k: int) -> torch.Tensor | None:
        if turn is not None:
            turn(k)
        pairs = [(q_i, tangents[i][k]) for i, q_i in zip(moving, q, strict=True) if q_i is not None]
        return _weighted_gradient(pairs, [u], keep=True)[0]

    return [along(k) for k in range(num_vectors)]


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
