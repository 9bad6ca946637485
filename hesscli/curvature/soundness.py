"""Does a product hold for this model? Asked on one short row of the real checkpoint, before it is chosen."""

from typing import Any

import numpy as np
import torch

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import OuterProductOperator
from hesscli.curvature.layered import LayeredOperator
from hesscli.curvature.losses import twice_differentiable_attention
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import SoftmaxCurvature
from hesscli.curvature.stack import Stack, UnknownStructureError, find_stack
from hesscli.linalg.space import ParameterVector

# Positions of the row on which layered is held against double backward: their graph is small beside the weights.
_CHECKED_TOKENS = 32


def checked_stack(risk: EmpiricalRisk) -> Stack:
    """The stack, after one product of either kind on one short row.

    Operations without a forward derivative show there, and so does an architecture that is not what it seems:
    weights that two layers share, layers within layers, a piece that the model runs without a gradient.
    """
    row = risk.first_row(most=_CHECKED_TOKENS)
    v = row.space.random("rademacher", seed=0, index=0)
    try:
        stack = find_stack(row)
        product = LayeredOperator(row, stack).matvec(v)
    except UnknownStructureError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnknownStructureError(" ".join(str(error).split())[:120]) from error
    difference = _disagreement(row, HessianOperator(row, keep_graph=False).matvec(v), product)
    if not difference <= 1.0:
        msg = "on a short row it does not agree with double backward"
        raise UnknownStructureError(msg)
    return stack


def _disagreement(risk: EmpiricalRisk, truth: ParameterVector, product: ParameterVector) -> float:
    """The largest difference of a parameter's part, over what rounding explains; puts it into `product`."""
    space = risk.space
    # A model in float64 has float32 inside too: norms are written that way.
    epsilon = max(torch.finfo(dtype).eps for dtype in {torch.float32, *(p.dtype for p in risk.model.parameters())})
    allowed = min(0.1, 1e4 * epsilon)
    space.axpy(-1.0, truth, product)
    sizes, errors = np.sqrt(space.inners(truth, truth)), np.sqrt(space.inners(product, product))
    whole = float(np.linalg.norm(sizes))
    if whole == 0.0:
        return float("inf") if errors.any() else 0.0
    if allowed == 0.1:  # narrow weights: a part that is zero in truth is nothing but the rounding of others
        return float(np.linalg.norm(errors)) / (allowed * whole)
    return float((errors / (allowed * np.maximum(sizes, 0.01 * whole))).max())


def has_forward_mode(risk: EmpiricalRisk) -> bool:
    """Whether every operation of the model has a forward derivative."""
    row = risk.first_row(most=_CHECKED_TOKENS)
    try:
        OuterProductOperator(row, SoftmaxCurvature()).matvec(row.space.random("rademacher", seed=0, index=0))
    except NotImplementedError:
        return False
    return True


def once_differentiable(risk: EmpiricalRisk) -> str | None:
    """Whether a function in the gradient of one row is marked as not to be differentiated again, in words.

    torch puts an error behind such a function, which `autograd.grad` does not reach: products would be wrong without
    a word.
    """
    row = risk.first_row(most=_CHECKED_TOKENS)
    with twice_differentiable_attention():
        loss = row.batch_loss(row.batches[0])
        gradients = torch.autograd.grad(loss, row.parameters, create_graph=True, allow_unused=True)
    seen: set[Any] = set()
    nodes = [g.grad_fn for g in gradients if g is not None]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return "a function of the model is marked once_differentiable"
        seen.add(node)
        nodes.extend(after for after, _ in node.next_functions)
    return None
