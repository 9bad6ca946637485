"""The run of topk: its basis, its operators, and what the data's own spread does to each eigenvalue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hesscli.curvature.batches import batch_quadratic_forms, groups_of_rows
from hesscli.curvature.choice import choose_operator
from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.trust.product_errors import ErrorsAlong
from hesscli.data import Batch
from hesscli.errors import UsageError
from hesscli.events import Noted, OnEvent, Warned
from hesscli.linalg.space import ParameterVector
from hesscli.linalg.statistics import Estimate, ratio_estimate, ratios_without_one
from hesscli.probes.topk import TopK, topk
from hesscli.recipe import Recipe
from hesscli.report import schema
from hesscli.run.figures.basis import krylov_dim_of
from hesscli.run.figures.data_error import GROUPS, groups_of
from hesscli.run.figures.metrics import topk_precision
from hesscli.run.observed import ObservedOperator
from hesscli.run.retreat import RetreatingOperator
from hesscli.run.setup import Subject
from hesscli.run.slices import batches


@dataclass(frozen=True, slots=True)
class Spread:
    """What the batches of the slice, and further ones, say of each pair."""

    on_slice: list[Estimate] | None
    held_out: list[Estimate] | None
    num_groups: int
    without_one: list[np.ndarray]
    """Of each pair, its quadratic form with each group of the slice left out; as empty as `on_slice`."""
    product_errors: list[float] | None
    """The product's relative error along each eigenvector; None where it cannot be measured."""


def check_topk(recipe: Recipe) -> None:
    """Raise UsageError where the basis is to be built by a product that the matrix does not have."""
    product, kind = recipe.estimator.basis_product, recipe.operator.kind
    if kind != "hessian" and product not in ("auto", "layered"):
        what = f"'{product}' is for the Hessian, not for {kind}"
        raise UsageError("estimator.basis_product", what, "leave --basis-product out")


def measure_pairs(
    recipe: Recipe, subject: Subject, operator: ObservedOperator, errors_along: ErrorsAlong, on_event: OnEvent
) -> tuple[TopK, Spread, dict[str, object]]:
    """The pairs, their spread over the data, and the settings that the run came to.

    Raises UsageError, DoesNotFitError, or FloatingPointError where a product is not finite.
    """
    estimator, space = recipe.estimator, subject.risk.space
    steps = recipe.budget("steps")
    krylov_dim = krylov_dim_of(recipe, space, steps=steps)
    space.storage = replace(space.storage, capacity=krylov_dim)
    if krylov_dim is not None and estimator.krylov_dim is None:
        on_event(Noted(f"the basis is restarted at {krylov_dim} vectors: more do not fit in memory"))
    cheap = _basis_operator(recipe, subject, operator, on_event)
    found_groups = groups_of(subject, asked=estimator.data_error, on_event=on_event)
    groups = [] if found_groups is None else found_groups.batches
    others = groups_of_rows(_held_out(subject), at_least=GROUPS)
    forms = _Forms(subject, operator, groups, others, errors_along)
    result = topk(
        operator,
        k=estimator.k,
        which=estimator.which,
        max_steps=steps,
        tolerance=estimator.tolerance,
        seed=estimator.seed,
        on_event=on_event,
        krylov_dim=krylov_dim,
        basis_operator=cheap,
        quadratic_forms=forms,
    )
    settings: dict[str, object] = {
        "steps_taken": result.num_steps,
        "orthogonality_loss": result.orthogonality_loss,
        "krylov_dim": krylov_dim,
        "basis": estimator.basis,
    }
    if cheap is not None:
        settings["basis_matvecs"] = cheap.num_matvecs
        operator.num_matvecs += cheap.num_matvecs
        operator.num_replayed += cheap.num_replayed
        operator.seconds += cheap.seconds
    if (found := result.completeness) is not None:
        settings["completeness"] = {
            "probes": found.num_probes,
            "matvecs": found.num_matvecs,
            "found": found.num_found,
            "complete": found.complete,
        }
        if not found.complete:
            what = "an eigenvalue may be missing among the pairs, or a copy of one: the probes could not settle it"
            on_event(Warned("completeness", what))
    return result, replace(_spread(result, groups, others), product_errors=forms.product_errors), settings


def eigenpairs(result: TopK, spread: Spread, *, noise: float) -> list[schema.Eigenpair]:
    """The pairs for the report, bars widened by the product's error along each, or by `noise` where it is not known."""
    errors, pairs = spread.product_errors, []
    for i, p in enumerate(result.pairs):
        floor = topk_precision(result, noise=noise, place=i, product_errors=errors)
        pair = schema.Eigenpair(value=p.value, residual=p.residual_norm, converged=p.converged, bar=p.bar + floor)
        pair.end = "upper" if i < result.num_high else "lower"
        pair.product_error = None if errors is None else errors[i]
        if spread.on_slice is not None:
            pair.slice_error = spread.on_slice[i].stderr
        if spread.held_out is not None:
            pair.held_out, pair.held_out_error = spread.held_out[i].value, spread.held_out[i].stderr
        pairs.append(pair)
    return pairs


def _basis_operator(
    recipe: Recipe, subject: Subject, certifying: ObservedOperator, on_event: OnEvent
) -> ObservedOperator | None:
    """The operator that builds the basis, where it is another than the one that certifies."""
    product, risk = recipe.estimator.basis_product, subject.risk
    if product == "auto":
        return None
    if product == "finite-difference":  # one-sided: one gradient each, and its errors end with the basis
        differences = FiniteDifferenceOperator(risk, scheme="forward")
        patient = RetreatingOperator(differences, risk, recipe=recipe, on_event=on_event)
        return ObservedOperator(patient, risk.space, log=certifying.log, journal=certifying.journal)
    choice = choose_operator(risk, kind=recipe.operator.kind, product=product, seed=recipe.estimator.seed)
    patient = RetreatingOperator(choice.operator, risk, recipe=recipe, on_event=on_event)
    return ObservedOperator(patient, risk.space, log=certifying.log, journal=certifying.journal)


def _held_out(subject: Subject) -> Sequence[Batch]:
    if subject.held_out is None:
        return []
    return batches(subject.held_out, subject.batch_size, subject.checkpoint)


class _Forms:
    """What is asked of eigenvectors while they are held: their quadratic forms, and the product's error along them."""

    def __init__(
        self,
        subject: Subject,
        operator: ObservedOperator,
        groups: Sequence[Batch],
        others: Sequence[Batch],
        errors_along: ErrorsAlong,
    ) -> None:
        self._subject, self._operator, self._errors_along = subject, operator, errors_along
        self._batches = [*groups, *others]
        self._products = bool(groups) + bool(others)
        self.product_errors: list[float] | None = []

    def __call__(self, vectors: Sequence[ParameterVector]) -> np.ndarray:
        """u.H_b u for each batch b, (batches, vectors)."""
        errors = self._errors_along(vectors)
        if errors is None or self.product_errors is None or not np.isfinite(errors).all():
            self.product_errors = None
        else:
            self.product_errors += errors
        if not self._batches:
            return np.zeros((0, len(vectors)))
        with self._operator.counted(len(vectors) * self._products):
            return batch_quadratic_forms(self._operator.observed, self._subject.risk, self._batches, vectors)


def _spread(result: TopK, groups: Sequence[Batch], others: Sequence[Batch]) -> Spread:
    forms = result.quadratic_forms
    if forms is None:
        return Spread(None, None, len(groups), [], None)

    def estimates(rows: np.ndarray, batches: Sequence[Batch]) -> list[Estimate]:
        terms = np.array([b.num_terms for b in batches], dtype=np.float64)
        return [ratio_estimate(terms * column, terms) for column in rows.T]

    inside, outside = forms[: len(groups)], forms[len(groups) :]
    return Spread(
        estimates(inside, groups) if groups else None,
        estimates(outside, others) if others else None,
        len(groups),
        _without_one(inside, groups) if groups else [],
        None,
    )


def _without_one(rows: np.ndarray, batches: Sequence[Batch]) -> list[np.ndarray]:
    terms = np.array([b.num_terms for b in batches], dtype=np.float64)
    found = [ratios_without_one(terms * column, terms) for column in rows.T]
    return [one for one in found if one is not None]
