"""What the rows that a slice happens to have do to a figure: its spread over groups of them."""

import numpy as np

from hesscli.curvature.batches import batch_quadratic_forms, groups_of_rows
from hesscli.events import Finished, OnEvent, Started
from hesscli.linalg.statistics import ratio_estimate
from hesscli.report import schema
from hesscli.run.observed import ObservedOperator
from hesscli.run.setup import Subject

FEWEST = 4  # a spread of fewer groups is no standard error
GROUPS = 16  # of rows: with 16 the standard error itself is good to a fifth
_PROBES = 4  # vectors of signs; what they leave of sampling error only widens the spread
_SEED_OFFSET = 1 << 41  # sample indices that no probe draws


def add_to_trace(
    metrics: dict[str, schema.Metric], subject: Subject, operator: ObservedOperator, *, seed: int, on_event: OnEvent
) -> None:
    """Put the data's error into the trace and the mean eigenvalue; 4 products over groups of rows.

    The trace of group b is the mean of z.H_b z over vectors of signs; the slice's trace is their mean weighted by
    loss terms, and its standard error that of a ratio. Nothing is added where the slice has too few rows.
    """
    groups = groups_of_rows(subject.risk.batches, at_least=GROUPS)
    if len(groups) < FEWEST or "trace" not in metrics:
        return
    space = subject.risk.space
    on_event(Started("data error", None))
    vectors = [space.random("rademacher", seed=seed, index=_SEED_OFFSET + i) for i in range(_PROBES)]
    with operator.counted(_PROBES):
        forms = batch_quadratic_forms(operator.observed, subject.risk, groups, vectors)
    on_event(Finished("data error"))
    terms = np.array([b.num_terms for b in groups], dtype=np.float64)
    error = ratio_estimate(terms * forms.mean(axis=1), terms).stderr
    if error is None:
        return
    for name, scale in (("trace", 1.0), ("mean_eigenvalue", 1.0 / space.dimension)):
        metrics[name].errors.data, metrics[name].n["batches"] = scale * error, len(groups)
