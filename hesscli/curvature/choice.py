"""Which product to use: decided from memory that was measured, and said in one line."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from hesscli.checkpoint.memory import available_bytes
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.gauss_newton import OuterProductOperator
from hesscli.curvature.graph_memory import Bytes, graph_bytes, jacobian_bytes
from hesscli.curvature.layers.layered import LayeredOperator
from hesscli.curvature.layers.layered_risk import LayeredRisk
from hesscli.curvature.layers.stack import UnknownStructureError
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.curvature.score_curvature import LabelCurvature, SampledLabelCurvature, ScoreCurvature, SoftmaxCurvature
from hesscli.curvature.sharded.layered import ShardedLayeredOperator
from hesscli.curvature.sharded.risk import ShardedRisk
from hesscli.curvature.trust.soundness import (
    checked_stack,
    fetched_stack,
    forward_mode_holds,
    gathered_stack,
    layered_gauss_newton_holds,
    once_differentiable,
)
from hesscli.errors import UsageError
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector

ProductName = Literal["auto", "double-backward", "layered", "finite-difference"]
Kind = Literal["hessian", "ggn", "fisher", "empirical-fisher"]

# Graphs may take this part of what is free: the rest is for vectors, the basis and the system.
_SHARE = 0.5

# What torch says of an operation whose backward cannot be differentiated.
_NOT_TWICE = ("derivative for ", "does not currently support double backward")


@dataclass(frozen=True, slots=True)
class Choice:
    """An operator, the name of its product and the reason for it."""

    operator: LinearOperator[ParameterVector]
    product: str
    why: str


def choose_operator(
    risk: EmpiricalRisk, *, kind: Kind, product: ProductName, seed: int, step: float | None = None
) -> Choice:
    """The operator of a kind; `seed` is for sampled labels, `step` the one step of its differences, if it is those.

    Raises UsageError where a product is asked for that the kind does not have.
    """
    choice = _chosen(risk, kind=kind, product=product, seed=seed)
    if step is not None and isinstance(choice.operator, FiniteDifferenceOperator):
        operator = FiniteDifferenceOperator(risk, scheme="central", fixed_step=step)
        return replace(choice, operator=operator, why=f"{choice.why}, all at the step {step:g}")
    return choice


def _chosen(risk: EmpiricalRisk, *, kind: Kind, product: ProductName, seed: int) -> Choice:
    if isinstance(risk, ShardedRisk):
        return _sharded(risk, kind=kind, product=product, seed=seed)
    if isinstance(risk, LayeredRisk):
        return _fetched(risk, kind=kind, product=product, seed=seed)
    if kind == "hessian":
        return choose_product(risk, product=product)
    if product not in ("auto", "layered"):
        remedy = "use --product auto or layered"
        raise UsageError("operator.product", f"'{product}' is for the Hessian, not for {kind}", remedy)
    curvature, why = _score_curvature(kind, seed=seed)
    return _outer_product(risk, curvature, f"{why}, 2 gradients each", layered=product == "layered")


def _score_curvature(kind: Kind, *, seed: int) -> tuple[ScoreCurvature, str]:
    """The middle of a Gauss-Newton matrix, and what it is in words."""
    found: dict[str, tuple[ScoreCurvature, str]] = {
        "ggn": (SoftmaxCurvature(), "the loss's own curvature in closed form"),
        "fisher": (SampledLabelCurvature(seed=seed), "labels drawn once from the model's predictions"),
        "empirical-fisher": (LabelCurvature(), "gradients of single terms at the labels of the data"),
    }
    return found[kind]


def _fetched(risk: LayeredRisk, *, kind: Kind, product: ProductName, seed: int) -> Choice:
    """Of weights that are fetched layer by layer no graph through the whole model can be made."""
    because = "weights are fetched layer by layer"
    if product == "double-backward" or (product == "finite-difference" and kind != "hessian"):
        what = f"'{product}' of {kind} needs every weight in memory, and {because}"
        raise UsageError("operator.product", what, "use --product layered")
    try:
        if product == "finite-difference":
            if any(p.dtype not in (torch.float32, torch.float64) for p in risk.parameters):
                what = f"{because}, and those narrower than float32 cannot hold a displacement"
                raise UsageError("operator.product", what, "use --dtype float32, or --product layered")
            return _differences(risk, f"as asked, {because}: 2 gradients of 4 units each")
        stack = fetched_stack(risk)
    except UnknownStructureError as error:
        what = f"{because}, and the model cannot be taken so ({error})"
        raise UsageError("operator.product", what, "give it memory for all weights") from error
    if kind == "hessian":
        return Choice(LayeredOperator(risk, stack), "layered", f"{because}, 4 gradients each")
    curvature, why = _score_curvature(kind, seed=seed)
    return Choice(LayeredOperator(risk, stack, curvature), "layered", f"{why}, 2 gradients each: {because}")


def _outer_product(risk: EmpiricalRisk, curvature: ScoreCurvature, why: str, *, layered: bool) -> Choice:
    """With the graph of a batch where it fits and every operation has a forward derivative, else layer by layer."""
    graph = Choice(OuterProductOperator(risk, curvature), "jacobian", why)
    needed = jacobian_bytes(risk)
    tight = max(needed, key=lambda device: needed[device] / max(1, available_bytes(device)))
    free = f"{_size(available_bytes(tight))} free on {tight}"
    if layered:
        reason = "layer by layer as asked"
    elif not forward_mode_holds(risk):
        reason = "layer by layer: forward mode does not hold for every operation of the model"
    elif _fits(needed):
        return graph
    else:
        reason = f"layer by layer: a batch's graph of {_size(needed[tight])} measured against {free}"
    if (fault := once_differentiable(risk)) is not None:
        raise UsageError("operator.kind", f"no product of it is exact here: {fault}", "use --operator hessian")
    try:
        stack = checked_stack(risk)
        unknown = (
            "" if layered_gauss_newton_holds(risk, stack) else "on a short row it does not agree with reverse mode"
        )
    except UnknownStructureError as error:
        unknown = str(error)
    if unknown and not forward_mode_holds(risk):
        raise UsageError("operator.kind", f"it has no exact product here ({unknown})", "use --operator hessian")
    if unknown:
        return replace(graph, why=f"{why}; layered is not possible ({unknown})")
    return Choice(LayeredOperator(risk, stack, curvature), "layered", f"{why}, {reason}")


def choose_product(risk: EmpiricalRisk, *, product: ProductName) -> Choice:
    """The exact Hessian by the fastest product that fits the memory found, or by the one that is asked for.

    In gradients: double backward with its graph kept costs 2 a product, without 3, layered 4. Where layers are
    not understood, layered gives way to double backward and says so. Finite differences are not exact: they are
    taken where they are asked for, and as the last resort where an operation has no second derivative.
    """
    if product == "finite-difference":
        return _differences(risk, "as asked, 2 gradients each")
    try:
        reason = once_differentiable(risk)
        if product == "layered" and reason is None:
            return _layered(risk, "as asked, 4 gradients each")
        batch, everything = graph_bytes(risk)
    except torch.OutOfMemoryError:
        return _layered(risk, "one layer at a time, 4 gradients each: one row's graph does not fit")
    except RuntimeError as error:
        if product != "auto" or not any(words in str(error) for words in _NOT_TWICE):
            raise
        reason = " ".join(str(error).split())[:120]
    if reason is not None and product != "auto":
        raise UsageError("operator.product", f"'{product}' is not exact here: {reason}", "use finite-difference")
    if reason is not None:
        return _differences(risk, f"the last resort, 2 gradients each: no product is exact here ({reason})")
    tight = max(batch, key=lambda device: everything[device] / max(1, available_bytes(device)))
    free = f"{_size(available_bytes(tight))} free on {tight}"
    if _fits(everything):
        why = f"graph kept between products, 2 gradients each: {_size(everything[tight])} measured against {free}"
        return Choice(HessianOperator(risk, keep_graph=True), "double-backward", why)
    measured = f"a batch's graph of {_size(batch[tight])} measured against {free}"
    if product == "double-backward" or _fits(batch):
        why = f"graph made again for each product, 3 gradients each: {measured}"
        return Choice(HessianOperator(risk, keep_graph=False), "double-backward", why)
    return _layered(risk, f"one layer at a time, 4 gradients each: {measured}")


def _curvature(kind: Kind, *, seed: int) -> ScoreCurvature | None:
    kinds: dict[Kind, ScoreCurvature | None] = {
        "hessian": None,
        "ggn": SoftmaxCurvature(),
        "fisher": SampledLabelCurvature(seed=seed),
        "empirical-fisher": LabelCurvature(),
    }
    return kinds[kind]


def _sharded(risk: ShardedRisk, *, kind: Kind, product: ProductName, seed: int) -> Choice:
    """Layer by layer where layers are understood: the one exact product for which weights need not be whole."""
    if product == "double-backward":
        what = "'double-backward' wants all weights in each process"
        raise UsageError("operator.product", what, "use --product layered or finite-difference")
    if product == "finite-difference" and kind != "hessian":
        raise UsageError("operator.product", f"'{product}' is for the Hessian, not for {kind}", "use --product layered")
    if product == "finite-difference":
        return _differences(risk, "as asked, 2 gradients each, over several processes")
    try:
        stack = gathered_stack(risk.swept)
    except UnknownStructureError as error:
        if kind != "hessian" or product == "layered":
            what = f"no product layer by layer is possible ({error}), and several processes have no other that is exact"
            raise UsageError("operator.product", what, "use --product finite-difference, or one process") from error
        return _differences(risk, f"the last resort, 2 gradients each: layered is not possible ({error})")
    curvature, cost = _curvature(kind, seed=seed), "4 gradients each" if kind == "hessian" else "2 gradients each"
    why = f"one layer at a time, gathered from {risk.space.ranks.size} processes, {cost}"
    return Choice(ShardedLayeredOperator(risk, stack, curvature), "layered", why)


def _differences(risk: EmpiricalRisk, why: str) -> Choice:
    return Choice(FiniteDifferenceOperator(risk, scheme="central"), "finite-difference", why)


def _layered(risk: EmpiricalRisk, why: str) -> Choice:
    try:
        stack = checked_stack(risk)
    except UnknownStructureError as reason:
        operator = HessianOperator(risk, keep_graph=False)
        return Choice(operator, "double-backward", f"layered is not possible ({reason}), 3 gradients each")
    return Choice(LayeredOperator(risk, stack), "layered", why)


def _fits(needed: Bytes) -> bool:
    return all(count <= _SHARE * available_bytes(device) for device, count in needed.items())


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
