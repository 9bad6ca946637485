"""The gradient, hess's products and the peers', each as a function without arguments.

A product is made from a subject and a vector, and returns its result in its library's own form: parts, or
one flat vector. Making it, and bringing the vector to that form, is not timed.
"""

import warnings

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.stack import find_stack
from hesscli.data import IGNORED

TOGETHER = 8
SHARED = f"hess, layered, {TOGETHER} at once, each"


class _PlainSiLU(nn.Module):
    """SiLU from primitives: the backward of torch's own has no forward derivative outside grad mode."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Logits(nn.Module):
    """A model as the peers want it: token ids in, one row of logits per position out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits.flatten(0, 1)


def tensors(subject):
    """Token ids and flat targets. Rows are full, so that no peer needs an attention mask."""
    ids, mask = subject.batch.inputs["input_ids"], subject.batch.inputs.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        msg = "the benchmark wants rows of one length"
        raise ValueError(msg)
    return ids, subject.batch.targets.flatten()


def _flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def mean_loss(model, batch):
    """The mean cross-entropy over the batch's loss terms."""
    ids, targets = batch
    return functional.cross_entropy(model(ids), targets, ignore_index=IGNORED)


def gradient(subject):
    """Loss and gradient: the unit of the table."""
    model, batch = Logits(subject.own_model()), tensors(subject)
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(mean_loss(model, batch), parameters)


def hess_made_again(subject, v):
    operator = HessianOperator(subject.risk(), keep_graph=False)
    return lambda: operator.matvec(v)


def hess_kept(subject, v):
    operator = HessianOperator(subject.risk(), keep_graph=True)
    return lambda: operator.matvec(v)


def hess_layered(subject, v):
    risk = subject.risk()
    operator = LayeredOperator(risk, find_stack(risk.first_row()))
    return lambda: operator.matvec(v)


def hess_layered_together(subject, v):
    """Eight vectors at once; the first is the one that all products are compared on."""
    risk = subject.risk()
    operator = LayeredOperator(risk, find_stack(risk.first_row()))
    vs = [v, *(risk.space.random("gaussian", seed=1, index=i) for i in range(TOGETHER - 1))]
    return lambda: operator.matvecs(vs)[0]


def hess_central(subject, v):
    operator = FiniteDifferenceOperator(subject.risk(), scheme="central")
    return lambda: operator.matvec(v)


def hess_forward(subject, v):
    operator = FiniteDifferenceOperator(subject.risk(), scheme="forward")
    return lambda: operator.matvec(v)


def _eigenthings(subject, v, method):
    from hessian_eigenthings.operators.hessian import HessianOperator as Peer

    operator = Peer(Logits(subject.own_model()), [tensors(subject)], mean_loss, method=method)
    flat = _flat(v)
    return lambda: operator.matvec(flat)


def eigenthings_autograd(subject, v):
    return _eigenthings(subject, v, "autograd")


def eigenthings_difference(subject, v):
    return _eigenthings(subject, v, "finite_difference")


def curvlinops(subject, v):
    """Forward over reverse under no_grad; it cannot take torch's SiLU, so its copy of the model has another."""
    from curvlinops import HessianLinearOperator

    model, flat = Logits(subject.own_model()), _flat(v)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.SiLU, SiLUActivation)):
                setattr(module, name, _PlainSiLU())
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    operator = HessianLinearOperator(
        model, criterion, list(model.parameters()), [tensors(subject)], check_deterministic=False
    )
    return lambda: operator @ flat


def pyhessian(subject, v):
    """On one batch it keeps the graph, as hess does."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backward(create_graph=True) is warned of
        kept = hessian(Logits(subject.own_model()), criterion, data=tensors(subject), cuda=False)
    return lambda: hessian_vector_product(kept.gradsH, kept.params, v)


# name: (how it is made, the package it needs, the relative difference that is let pass)
PRODUCTS = {
    "hess, double backward": (hess_made_again, "hesscli", 1e-4),
    "hess, graph kept": (hess_kept, "hesscli", 1e-4),
    "hess, layered": (hess_layered, "hesscli", 1e-4),
    SHARED: (hess_layered_together, "hesscli", 1e-4),
    "hess, central differences": (hess_central, "hesscli", 1e-3),
    "hess, forward differences": (hess_forward, "hesscli", 1e-2),
    "hessian-eigenthings, autograd": (eigenthings_autograd, "hessian_eigenthings", 1e-4),
    "hessian-eigenthings, finite difference": (eigenthings_difference, "hessian_eigenthings", 1e-2),
    "curvlinops, SiLU from primitives": (curvlinops, "curvlinops", 1e-4),
    "PyHessian, graph kept": (pyhessian, "pyhessian", 1e-4),
}
