"""Every product of a tiny checkpoint against its dense matrix, and the noise of a product on all of its parameters."""

from collections.abc import Callable, Iterator

import torch

from hesscli.curvature.choice import choose_operator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.selection import select_parameters
from hesscli.curvature.trust.preflight import LARGEST_ERROR, check_product
from hesscli.errors import HessError
from hesscli.events import OnEvent
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector
from hesscli.recipe.document import resolve
from hesscli.run.doctor.dense import dense_matrices
from hesscli.run.doctor.document import SelfTest
from hesscli.run.setup import Subject, build_subject

_SELECTED = ["model.layers.0.self_attn.*_norm*", "model.layers.3.self_attn.*_norm*"]  # 96 of 0.5M: a dense matrix
_VECTORS, _SEED = 3, 0
_EXACT, _DIFFERENCE = 1e-4, 2e-2  # of ||H v||: float32 shows 1e-6, differences 1e-4
Operator = LinearOperator[ParameterVector]


def subject_on(device: torch.device, on_event: OnEvent) -> Subject:
    """The embedded checkpoint on a device, with two short rows and few parameters selected."""
    recipe, _ = resolve(
        [
            (
                "doctor",
                {
                    "probe": "topk",
                    "model.id": "demo",
                    "model.device_map": str(device),
                    "data.limit": 2,
                    "data.max_length": 12,
                    "data.batch_size": 2,
                    "operator.params": _SELECTED,
                },
            )
        ]
    )
    return build_subject(recipe, on_event=on_event)


def against_dense(subject: Subject, device: torch.device) -> Iterator[SelfTest]:
    """||H v - dense v|| / ||dense v|| for each product, the largest over a few v."""
    risk = subject.risk
    dense = dense_matrices(risk, seed=_SEED)
    for name, kind, limit, make in _products(risk):
        try:
            error, reason = _error(make(), dense[kind], risk), ""
        except HessError as failure:
            error, reason = None, str(failure)
        passed = error is not None and error <= limit
        yield SelfTest(name=name, device=str(device), error=error, limit=limit, passed=passed, reason=reason)


def noise_of(subject: Subject, device: torch.device) -> Iterator[SelfTest]:
    """The same product twice, and the largest relative error that the preflight of a run finds."""
    model, batches = subject.checkpoint.model, subject.risk.batches
    chosen = select_parameters(model, params=["*"], exclude=[], adapter=())
    risk = EmpiricalRisk(
        model, batches, names=list(chosen), parameters=list(chosen.values()), input_device=subject.risk.input_device
    )
    operator = choose_operator(risk, kind="hessian", product="auto", seed=_SEED).operator
    try:
        found = check_product(
            operator, risk, loss=risk.loss(), gradient=risk.gradient(), semi_definite=False, seed=_SEED
        )
    except HessError as failure:
        reason = str(failure)
        yield SelfTest(
            name="preflight", device=str(device), error=None, limit=LARGEST_ERROR, passed=False, reason=reason
        )
        return
    for name, error, limit in (("same product twice", found.repeat, _EXACT), ("noise floor", found.noise, _EXACT)):
        yield SelfTest(name=name, device=str(device), error=error, limit=limit, passed=error <= limit)


def _products(risk: EmpiricalRisk) -> list[tuple[str, str, float, Callable[[], Operator]]]:
    def chosen(kind: str, product: str) -> Callable[[], Operator]:
        return lambda: choose_operator(risk, kind=kind, product=product, seed=_SEED).operator  # type: ignore[arg-type]

    return [
        ("hessian, graph kept", "hessian", _EXACT, lambda: HessianOperator(risk, keep_graph=True)),
        ("hessian, double backward", "hessian", _EXACT, lambda: HessianOperator(risk, keep_graph=False)),
        ("hessian, layered", "hessian", _EXACT, chosen("hessian", "layered")),
        ("hessian, finite difference", "hessian", _DIFFERENCE, chosen("hessian", "finite-difference")),
        ("ggn", "ggn", _EXACT, chosen("ggn", "auto")),
        ("ggn, layered", "ggn", _EXACT, chosen("ggn", "layered")),
        ("fisher", "fisher", _EXACT, chosen("fisher", "auto")),
        ("empirical fisher", "empirical-fisher", _EXACT, chosen("empirical-fisher", "auto")),
    ]


def _error(operator: Operator, dense: torch.Tensor, risk: EmpiricalRisk) -> float:
    worst = 0.0
    for index in range(_VECTORS):
        v = risk.space.random("gaussian", seed=_SEED, index=index)
        truth = dense @ _flat(v)
        worst = max(worst, float((_flat(operator.matvec(v)) - truth).norm() / truth.norm()))
    return worst if worst == worst else float("inf")


def _flat(v: ParameterVector) -> torch.Tensor:
    return torch.cat([part.detach().reshape(-1) for part in v]).cpu().double()
