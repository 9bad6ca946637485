"""The breadth table: on every architecture each product is right, or says that it gives way and why."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from breadth.subjects import SUBJECTS, Subject
from tiny import flat
from torch.nn import functional
from transformers import PreTrainedModel

from hesscli.curvature.choice import choose_product
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import GGNOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.trust.wide import float64_throughout
from hesscli.data.slice import IGNORED, Batch

# Layered gives way to double backward on these, with this in its reason. An architecture that is not here is
# taken layer by layer, and one that falls back after a change fails here.
GIVES_WAY = {}

# Operations of their own without a forward derivative: no Gauss-Newton product.
NO_FORWARD_DERIVATIVE = {"bloom", "recurrent_gemma"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    subject: Subject
    risk: EmpiricalRisk
    plain_loss: float
    """The model's loss by other code, before hess saw the model."""


def risk_on(model: PreTrainedModel, batch: Batch) -> EmpiricalRisk:
    named = dict(model.named_parameters())
    return EmpiricalRisk(
        model, [batch], names=list(named), parameters=list(named.values()), input_device=torch.device("cpu")
    )


def marks(subject):
    return [pytest.mark.slow] if subject.slow else []


@pytest.fixture(scope="module", params=[pytest.param(s, id=s.name, marks=marks(s)) for s in SUBJECTS.values()])
def row(request):
    subject = request.param
    model, batch = subject.build(), subject.batch()
    model.config.use_cache = False  # RWKV's changes the state that its graph has saved
    with torch.no_grad():
        logits = model(**batch.inputs).logits
    logits = logits.reshape(-1, logits.shape[-1])
    plain = float(functional.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED))
    return Row(subject, risk_on(model, batch), plain)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def two_vectors(risk):
    return [risk.space.random("gaussian", seed=0, index=i) for i in range(2)]


def test_the_loss_is_the_models_own(row):
    assert row.risk.loss().value == pytest.approx(row.plain_loss, rel=1e-6)


def test_double_backward_is_the_derivative_of_the_gradient(row):
    with float64_throughout():
        model, batch = row.subject.build().double(), row.subject.batch()
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()}
        risk = risk_on(model, Batch(inputs, batch.targets))
        u, v = two_vectors(risk)
        reached = torch.autograd.grad(risk.batch_loss(risk.batches[0]), risk.parameters, allow_unused=True)
        for parts in zip(u, v, reached, strict=True):
            if parts[-1] is None:  # read without a gradient, as sinusoids are: a constant of the loss
                parts[0].zero_(), parts[1].zero_()
        hu, hv = HessianOperator(risk, keep_graph=False).matvecs([u, v])
        step = 1e-7  # short enough that no kink lies within it, long enough for 9 digits
        ends = []
        for sign in (1, -1):
            move(risk, v, sign * step)
            ends.append(flat(risk.gradient()))
            move(risk, v, -sign * step)
    assert abs(flat(u) @ flat(hv) - flat(v) @ flat(hu)) < 1e-11 * np.linalg.norm(flat(u)) * np.linalg.norm(flat(hv))
    assert relative((ends[0] - ends[1]) / (2 * step), flat(hv)) < 1e-6


def move(risk, v, step):
    with torch.no_grad():
        for p, part in zip(risk.parameters, v, strict=True):
            p.add_(part, alpha=step)


def test_layered_agrees_with_double_backward_or_gives_way(row):
    choice = choose_product(row.risk, product="layered")
    reason = GIVES_WAY.get(row.subject.name)
    if reason is not None:
        assert choice.product == "double-backward"
        assert reason in choice.why
        return
    assert choice.product == "layered", choice.why
    _, v = two_vectors(row.risk)
    truth = HessianOperator(row.risk, keep_graph=False).matvec(v)
    assert relative(flat(choice.operator.matvec(v)), flat(truth)) < 1e-5


def test_gauss_newton_is_its_definition_by_reverse_mode_alone(row):
    u, v = two_vectors(row.risk)
    operator = GGNOperator(row.risk)
    if row.subject.name in NO_FORWARD_DERIVATIVE:
        with pytest.raises(NotImplementedError, match="jvp"):
            operator.matvec(v)
        return
    gu, gv = (flat(product) for product in operator.matvecs([u, v]))
    assert relative(gv, flat(gauss_newton_by_reverse_mode(row.risk, v))) < 1e-5
    assert flat(v) @ gv >= 0
    assert abs(flat(u) @ gv - flat(v) @ gu) < 1e-5 * np.linalg.norm(flat(u)) * np.linalg.norm(gv)


def gauss_newton_by_reverse_mode(risk, v):
    """J^T (diag p - p p^T) J v, where J v is the derivative of c -> v . J^T c."""
    batch, parameters = risk.batches[0], risk.parameters
    logits = risk.model(**batch.inputs).logits
    logits = logits.reshape(-1, logits.shape[-1])
    c = torch.zeros_like(logits, requires_grad=True)
    back = torch.autograd.grad(logits, parameters, c, create_graph=True, allow_unused=True)
    along = sum((part * b).sum() for part, b in zip(v, back, strict=True) if b is not None)
    (tangents,) = torch.autograd.grad(along, c, retain_graph=True)
    p = torch.softmax(logits.detach(), dim=-1)
    curved = p * (tangents - (p * tangents).sum(dim=-1, keepdim=True))
    curved[batch.targets.flatten() == IGNORED] = 0
    out = torch.autograd.grad(logits, parameters, curved / risk.num_terms, allow_unused=True)
    return [torch.zeros_like(p) if o is None else o for p, o in zip(parameters, out, strict=True)]
