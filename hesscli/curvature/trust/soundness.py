"""Does a product hold for this model? Asked on one short row of the real checkpoint, before it is chosen."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import OuterProductOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.pull_back import push_forward
from hesscli.curvature.layers.stack import Stack, UnknownStructureError, find_stack
from hesscli.curvature.losses import scores, twice_differentiable_attention
from hesscli.curvature.risk import LOOKED_AT, EmpiricalRisk, add_into
from hesscli.curvature.score_curvature import SoftmaxCurvature, curve_all
from hesscli.curvature.sharded.swept import SweptRisk
from hesscli.curvature.trust.pieces import ONCE, ROUNDINGS, excess, fault_of_pieces, is_marked
from hesscli.errors import HessError
from hesscli.linalg.space import ParameterVector


def checked_stack(risk: EmpiricalRisk) -> Stack:
    """The stack, after one product of either kind on one short row.

    Operations without a forward derivative show there, and so does an architecture that is not what it seems:
    weights that two layers share, layers within layers, a piece that the model runs without a gradient.
    """
    row = risk.first_row(most=LOOKED_AT)
    v = row.space.random("rademacher", seed=0, index=0)
    with _not_understood():
        stack = find_stack(row)
        product = LayeredOperator(row, stack).matvec(v)
    difference = _disagreement(row, HessianOperator(row, keep_graph=False).matvec(v), product)
    if not difference <= 1.0:
        msg = "on a short row it does not agree with double backward"
        raise UnknownStructureError(msg)
    _check_calls(risk, stack)
    return stack


def fetched_stack(risk: LayeredRisk) -> Stack:
    """The stack of a model whose weights come layer by layer, each piece of which holds by itself (`pieces.py`).

    Whether gradient and product are those of the loss the preflight sees, from differences of the loss alone. Reads the
    layers three times. Raises UnknownStructureError.
    """
    row = risk.first_row(most=LOOKED_AT)
    with _not_understood():
        stack = find_stack(row)
        fault = fault_of_pieces(row, stack)
    if fault is not None:
        raise UnknownStructureError(fault)
    _check_calls(risk, stack)
    return stack


def gathered_stack(swept: SweptRisk) -> Stack:
    """The same of a model that is shared by processes: each gathers the layers three times, for one and the same row.

    What one of them finds wrong is wrong on all of them. Raises UnknownStructureError.
    """
    row = swept.first_row(most=LOOKED_AT)
    stack = swept.find_stack()
    with _not_understood():
        fault = fault_of_pieces(row, stack)
    for found in swept.space.ranks.each(fault):
        if found is not None:
            raise UnknownStructureError(found)
    return stack


@contextmanager
def _not_understood() -> Iterator[None]:
    """What the model's own code raises, run in another way than it was written for, is said in words."""
    try:
        yield
    except (UnknownStructureError, torch.OutOfMemoryError, HessError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnknownStructureError(" ".join(str(error).split())[:120]) from error


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
    allowed = min(0.1, ROUNDINGS * epsilon)
    space.axpy(-1.0, truth, product)
    sizes, errors = np.sqrt(space.inners(truth, truth)), np.sqrt(space.inners(product, product))
    return excess(sizes.tolist(), errors.tolist(), allowed)


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
    """Whether a function in the gradient of one row is marked as not to be differentiated again, in words."""
    row = risk.first_row(most=LOOKED_AT)
    with twice_differentiable_attention():
        loss = row.batch_loss(row.batches[0])
        if not loss.requires_grad:
            return None
        gradients = torch.autograd.grad(loss, row.parameters, create_graph=True, allow_unused=True)
    return ONCE if is_marked(gradients) else None
