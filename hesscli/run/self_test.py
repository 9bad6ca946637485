"""What is asked of a product before a run, and what a run can ask of it about the vectors that it finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from hesscli.checkpoint.limits import stated_limits
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.risk import EmpiricalRisk, LossValue
from hesscli.curvature.trust.float64 import Float64Errors
from hesscli.curvature.trust.preflight import Preflight, check_product
from hesscli.curvature.trust.product_errors import ErrorsAlong
from hesscli.curvature.trust.rounding import Float32Errors, check_rounding, gradient_in_float32, is_narrow
from hesscli.events import Noted, OnEvent, Warned
from hesscli.linalg.space import ParameterVector
from hesscli.recipe import Recipe
from hesscli.run.observed import ObservedOperator
from hesscli.run.retreat import RetreatingOperator

_OF_THE_ENDS = ("topk", "density")  # probes whose figures are of the ends of the spectrum


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the preflight of a run says of its product."""

    preflight: Preflight
    noise: float
    """The relative error that intervals are widened by."""
    errors_along: ErrorsAlong
    """The product's relative error along any vectors, measured by itself."""


def self_test(
    recipe: Recipe,
    risk: EmpiricalRisk,
    operator: ObservedOperator,
    patient: RetreatingOperator,
    differences: FiniteDifferenceOperator | None,
    *,
    loss: LossValue,
    gradient: ParameterVector,
    on_event: OnEvent,
) -> SelfTest:
    """Run the preflight of a product, and measure its error by what suits the weights: 5 products, narrow weights 11.

    Weights narrower than float32 are held against float32, others against float64 where there is room; differences
    estimate their own errors. `gradient` may be replaced by one in float32, which does not share the product's
    roundings. Raises UntrustworthyError.
    """
    narrow, kind, seed = is_narrow(risk), recipe.operator.kind, recipe.estimator.seed
    limits = _limits(recipe)
    if narrow and differences:  # they compute in float32, and are held against its gradient
        gradient = differences.gradient()
    elif narrow and kind == "hessian":
        gradient = patient.patiently(lambda: gradient_in_float32(risk, limits=limits) or []) or gradient
    found = check_product(operator, risk, loss=loss, gradient=gradient, semi_definite=kind != "hessian", seed=seed)
    if differences is not None:
        found = replace(found, differences=True)
        noise = max(found.noise, differences.relative_error)
        return SelfTest(found, noise, partial(_of_differences, operator, differences))
    if narrow:
        errors = Float32Errors(operator, risk, kind, seed, limits)
        found, warning = check_rounding(found, errors.sampled(), differences=_has_differences(recipe, risk))
        stands_in = kind == "fisher" and found.rounding is not None
        on_event(_of_stand_in(warning) if stands_in else warning)
        return SelfTest(found, _noise(recipe, found), errors.along)
    wider = Float64Errors(patient, risk, kind, seed, limits)
    found = wider.preflight(found)
    if found.rounding is None:
        on_event(Noted("float64 could not be asked what rounding does to products: twice the known answer's is taken"))
    return SelfTest(found, _noise(recipe, found), wider.along)


def _of_stand_in(warning: Warned) -> Warned:
    """Each precision would draw labels of its own, and so have another Fisher matrix."""
    return replace(warning, text=f"{warning.text}; measured on the GGN, which stands for the Fisher matrix")


def _of_differences(
    operator: ObservedOperator, differences: FiniteDifferenceOperator, vectors: Sequence[ParameterVector]
) -> list[float]:
    with operator.counted(2 * len(vectors)):
        return differences.errors_along(vectors)


def _noise(recipe: Recipe, found: Preflight) -> float:
    return found.noise_at_ends if recipe.probe in _OF_THE_ENDS else found.noise


def _limits(recipe: Recipe) -> Mapping[torch.device, int]:
    return stated_limits(recipe.model.max_memory)


def _has_differences(recipe: Recipe, risk: EmpiricalRisk) -> bool:
    """Whether finite differences can be taken of narrow weights: they move a float32 copy of all of them."""
    return recipe.operator.kind == "hessian" and type(risk) is EmpiricalRisk
