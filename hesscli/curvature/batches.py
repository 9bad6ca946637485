"""Quadratic forms batch by batch: how much an eigenvalue owes to the rows that the slice happens to have."""

from collections.abc import Sequence
from copy import copy

import numpy as np

from hesscli.curvature.differences.finite_difference import FiniteDifferenceOperator
from hesscli.curvature.double_backward import HessianOperator
from hesscli.curvature.risk import EmpiricalRisk
from hesscli.data.slice import Batch
from hesscli.linalg.operator import LinearOperator
from hesscli.linalg.space import ParameterVector


def on_risk(operator: LinearOperator[ParameterVector], risk: EmpiricalRisk) -> LinearOperator[ParameterVector]:
    """An operator of the same kind and product on another risk over the same parameters. It keeps no graph."""
    if isinstance(operator, HessianOperator):
        return HessianOperator(risk, keep_graph=False)
    if isinstance(operator, FiniteDifferenceOperator):
        return FiniteDifferenceOperator(risk, scheme=operator.scheme, fixed_step=operator.fixed_step)
    other = copy(operator)  # of what is left nothing belongs to a batch but the risk
    other.risk = risk  # type: ignore[attr-defined]
    return other


def batch_quadratic_forms(
    operator: LinearOperator[ParameterVector],
    risk: EmpiricalRisk,
    batches: Sequence[Batch],
    vectors: Sequence[ParameterVector],
) -> np.ndarray:
    """u.H_b u for each batch and vector, (batches, vectors), with H_b the matrix of the mean loss of batch b alone.

    Weighted by the batches' numbers of terms their mean is u.Hu. Costs one product over all batches for each
    vector, and holds a result for each.
    """
    forms = []
    for batch in batches:
        products = on_risk(operator, risk.on([batch])).matvecs(vectors)
        forms.append([risk.space.inner(u, w) for u, w in zip(vectors, products, strict=True)])
        del products  # before the next batch's are made
    return np.array(forms).reshape(len(batches), len(vectors))


def groups_of_rows(batches: Sequence[Batch], *, at_least: int) -> list[Batch]:
    """The batches that have a loss term, cut into fewer rows each where that gives nearer to `at_least` of them."""
    return split_rows(batches, max(1, sum(len(b.targets) for b in batches) // at_least))


def split_rows(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """The batches cut into at most so many rows each, in order; those without a loss term are left out."""
    out = []
    for batch in batches:
        for start in range(0, len(batch.targets), rows):
            part = slice(start, start + rows)
            inputs = {name: value[part] for name, value in batch.inputs.items()}
            out.append(Batch(inputs, batch.targets[part], batch.first_row + start))
    return [batch for batch in out if batch.num_terms]
