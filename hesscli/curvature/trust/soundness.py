"""Does a product hold for this model? Asked on one short row of the real checkpoint, before it is chosen."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import OuterProductOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.pull_back import push_forward
from hesscli.curvature.layers.push_layer import float_places
from hesscli.curvature.layers.stack import Forward, Stack, UnknownStructureError, find_stack, intercepted
from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk, add_into
from hesscli.curvature.score_curvature import SoftmaxCurvature, curve_all
from hesscli.errors import HessError
from hesscli.linalg.space import ParameterVector

_ONCE = "a function of the model is marked once_differentiable"
_ROUNDINGS = 100.0  # that two sound products of a part may differ by: of a hundred architectures the worst shows 20


def checked_stack(risk: EmpiricalRisk) -> Stack:
    """The stack, after one product of either kind on one short row.

    Operations without a forward derivative show there, and so does an architecture that is not what it seems:
    weights that two layers share, layers within layers, a piece that the model runs without a gradient.
    """
    row = risk.first_row(most=LOOKED_AT)
    v = row.space.random("rademacher", seed=0, index=0)
    try:
        stack = find_stack(row)
        product = LayeredOperator(row, stack).matvec(v)
    except (UnknownStructureError, torch.OutOfMemoryError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnknownStructureError(" ".join(str(error).split())[:120]) from error
    difference = _disagreement(row, HessianOperator(row, keep_graph=False).matvec(v), product)
    if not difference <= 1.0:
        msg = "on a short row it does not agree with double backward"
        raise UnknownStructureError(msg)
    _check_calls(risk, stack)
    return stack


def fetched_stack(risk: LayeredRisk) -> Stack:
    """The stack of a model whose weights come layer by layer: what can be asked without a graph through all of it.

    On one short row products of both kinds by forward mode are those by reverse mode alone, and no layer has a
    function that is marked as not to be differentiated again. Whether gradient and product are those of the loss the
    preflight sees, from differences of the loss alone. Raises UnknownStructureError.
    """
    row = risk.first_row(most=LOOKED_AT)
    v = row.space.random("rademacher", seed=0, index=0)
    try:
        stack = find_stack(row)
        if once_differentiable_layer(row, stack):
            raise UnknownStructureError(_ONCE)
        for curvature in (None, SoftmaxCurvature()):
            product = LayeredOperator(row, stack, curvature).matvec(v)
            truth = LayeredOperator(row, stack, curvature, forward_mode=False).matvec(v)
            if not _disagreement(row, truth, product) <= 1.0:
                msg = "on a short row forward mode does not agree with reverse mode"
                raise UnknownStructureError(msg)
    except (UnknownStructureError, torch.OutOfMemoryError, HessError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnknownStructureError(" ".join(str(error).split())[:120]) from error
    _check_calls(risk, stack)
    return stack


def _check_calls(risk: EmpiricalRisk, stack: Stack) -> None:
    longest = max((b for b in risk.batches if b.num_terms), key=lambda b: b.targets.shape[1])
    if stack.count_calls(risk.inputs(longest)) != len(stack.outputs):
        msg = "it does not run its layers as often on a longer row"
        raise UnknownStructureError(msg)


def _disagreement(risk: EmpiricalRisk, truth: ParameterVector, product: ParameterVector) -> float:
    """The largest difference of a parameter's part, over what rounding explains; puts it into `product`."""
    space = risk.space
    # A model in float64 has float32 inside too: norms are written that way.
    epsilon = max(torch.finfo(dtype).eps for dtype in {torch.float32, *(p.dtype for p in risk.model.parameters())})
    allowed = min(0.1, _ROUNDINGS * epsilon)
    space.axpy(-1.0, truth, product)
    sizes, errors = np.sqrt(space.inners(truth, truth)), np.sqrt(space.inners(product, product))
    whole = float(np.linalg.norm(sizes))
    if whole == 0.0:
        return float("inf") if errors.any() else 0.0
    if allowed == 0.1:  # narrow weights: a part that is zero in truth is nothing but the rounding of others
        return float(np.linalg.norm(errors)) / (allowed * whole)
    return float((errors / (allowed * np.maximum(sizes, 0.3 * whole))).max())


def forward_mode_holds(risk: EmpiricalRisk) -> bool:
    """Whether a Gauss-Newton product by forward mode is the one by reverse mode alone, on one short row.

    An operation may have no forward derivative, or forward mode may move what a backward pass holds for constant.
    """
    row = risk.first_row(most=LOOKED_AT)
    v = row.space.random("rademacher", seed=0, index=0)
    try:
        product = OuterProductOperator(row, SoftmaxCurvature()).matvec(v)
    except NotImplementedError:
        return False
    return _disagreement(row, _by_reverse_mode(row, v), product) <= 1.0


def layered_gauss_newton_holds(risk: EmpiricalRisk, stack: Stack) -> bool:
    """The same of the product layer by layer."""
    row = risk.first_row(most=LOOKED_AT)
    v = row.space.random("rademacher", seed=0, index=0)
    product = LayeredOperator(row, stack, SoftmaxCurvature()).matvec(v)
    return _disagreement(row, _by_reverse_mode(row, v), product) <= 1.0


def _by_reverse_mode(row: EmpiricalRisk, v: ParameterVector) -> ParameterVector:
    """G v where J v is the derivative of J^T u in u: no operation is asked for a forward derivative."""
    batch, truth = row.batches[0], row.space.zeros()
    with twice_differentiable_attention():
        logits = scores(row.model, row.inputs(batch)).flatten(0, 1)
        if not logits.requires_grad:
            return truth
        along = [[part.to(p.dtype)] for part, p in zip(v, row.parameters, strict=True)]
        (tangents,) = push_forward(logits, row.parameters, along, num_vectors=1)
        if tangents is not None:
            curved = curve_all(SoftmaxCurvature(), batch, logits.detach(), tangents)
            add_into(truth, torch.autograd.grad(logits, row.parameters, curved, allow_unused=True))
    row.space.scale(1.0 / row.num_terms, truth)
    return truth


def once_differentiable(risk: EmpiricalRisk) -> str | None:
    """Whether a function in the gradient of one row is marked as not to be differentiated again, in words.

    torch puts an error behind such a function, which `autograd.grad` does not reach: products would be wrong without
    a word.
    """
    row = risk.first_row(most=LOOKED_AT)
    with twice_differentiable_attention():
        loss = row.batch_loss(row.batches[0])
        if not loss.requires_grad:
            return None
        gradients = torch.autograd.grad(loss, row.parameters, create_graph=True, allow_unused=True)
    return _ONCE if _is_marked(gradients) else None


def once_differentiable_layer(row: EmpiricalRisk, stack: Stack) -> bool:
    """The same of each layer by itself: a forward pass and a gradient of a layer for each of its calls."""
    marked = False

    def look(layer: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal marked
        with row.residence.layer(layer) as leaves:
            with torch.enable_grad():
                flat, spec = tree_flatten((args, kwargs))
                for i in float_places(flat):
                    flat[i] = flat[i].detach().requires_grad_()
                again, named = tree_unflatten(flat, spec)
                out = forward(*again, **named)
                found, form = tree_flatten(out)
                sources = [flat[i] for i in float_places(flat)] + [leaf for _, leaf in leaves.values()]
                total = sum(found[i].sum() for i in float_places(found) if found[i].requires_grad)
                if isinstance(total, torch.Tensor):
                    marked |= _is_marked(torch.autograd.grad(total, sources, create_graph=True, allow_unused=True))
            for i in float_places(found):
                found[i] = found[i].detach()
            return tree_unflatten(found, form)

    with torch.no_grad(), twice_differentiable_attention(), intercepted(stack.layers, look):
        scores(row.model, row.inputs(row.batches[0]))
    return marked


def _is_marked(gradients: Sequence[torch.Tensor | None]) -> bool:
    seen: set[Any] = set()
    nodes = [g.grad_fn for g in gradients if g is not None]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        nodes.extend(after for after, _ in node.next_functions)
    return False
