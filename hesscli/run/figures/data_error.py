"""What the rows that a slice happens to have do to a figure: its spread over groups of them, one left out (jackknife).

A group's matrix H_g is that of its own mean loss, and the slice's is their mean weighted by loss terms t_g of T: so
without group g it is (T H - t_g H_g) / (T - t_g), and every figure of that needs products with H and the H_g alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hesscli.curvature.batches import batch_quadratic_forms, groups_of_rows, on_risk
from hesscli.data import Batch
from hesscli.events import Finished, OnEvent, Started, Warned
from hesscli.linalg.space import ParameterVector
from hesscli.linalg.statistics import (
    LEVEL,
    Estimate,
    deviation_estimate,
    jackknife_error,
    ratios_without_one,
    variation_estimate,
)
from hesscli.report import schema
from hesscli.run.figures.basis import vectors_fit
from hesscli.run.observed import ObservedOperator
from hesscli.run.setup import Subject

FEWEST = 4  # a spread of fewer groups is no standard error
GROUPS = 16  # of rows: with 16 the standard error itself is good to a fifth
PROBES = 4  # vectors of signs; what they leave of sampling error only widens the spread
SEED_OFFSET = 1 << 41  # sample indices that no probe draws


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of the slice in groups, each with its number of loss terms, (groups,) float64."""

    subject: Subject
    batches: Sequence[Batch]
    terms: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """t_g / T."""
        return np.asarray(self.terms / self.terms.sum())

    def products(
        self, operator: ObservedOperator, vectors: Sequence[ParameterVector]
    ) -> Iterator[list[ParameterVector]]:
        """H_g v for each vector, group by group; together they cost one product a vector."""
        with operator.counted(len(vectors)):
            for batch in self.batches:
                yield on_risk(operator.observed, self.subject.risk.on([batch])).matvecs(vectors)

    def forms(self, operator: ObservedOperator) -> Callable[[Sequence[ParameterVector]], np.ndarray]:
        """What maps vectors u to u.H_g u, (groups, vectors), at one product a vector."""

        def forms(vectors: Sequence[ParameterVector]) -> np.ndarray:
            with operator.counted(len(vectors)):
                return batch_quadratic_forms(operator.observed, self.subject.risk, self.batches, vectors)

        return forms

    def without_one(self, forms: np.ndarray) -> np.ndarray | None:
        """The slice's mean with each group left out, from one number for each group."""
        return ratios_without_one(self.terms * forms, self.terms)


def groups_of(subject: Subject, *, asked: str, on_event: OnEvent) -> Groups | None:
    """The groups; None where the data's error is not asked for, or the slice has too few rows, which is said."""
    if asked == "off":
        return None
    batches = groups_of_rows(subject.batches or subject.risk.batches, at_least=GROUPS)
    if len(batches) < FEWEST:
        rows = "1 row" if len(batches) == 1 else f"{len(batches)} rows"
        what = f"the slice has {rows} with a loss term: the error that the data makes is not estimated"
        on_event(Warned("few-rows", what))
        return None
    return Groups(subject, batches, np.array([b.num_terms for b in batches], dtype=np.float64))


def add_data(
    metrics: dict[str, schema.Metric],
    samples: dict[str, schema.Samples],
    name: str,
    without: np.ndarray | None,
    *,
    scale: float = 1.0,
) -> None:
    """Put the data's error into a metric that is there: from the figure with each group left out, times `scale`."""
    if without is None or name not in metrics or metrics[name].value is None:
        return
    without = scale * np.asarray(without)
    metrics[name].errors.data, metrics[name].n["batches"] = jackknife_error(without), len(without)
    samples.setdefault(name, schema.Samples()).data = without.tolist()


def add_to_ends(
    metrics: dict[str, schema.Metric],
    samples: dict[str, schema.Samples],
    groups: Groups,
    forms: dict[int, np.ndarray],
) -> None:
    """Put the data's error into both ends of the spectrum, each at its fixed eigenvector, and into the radius.

    `forms` are u.H_g u over the groups, by end: 1 the upper, -1 the lower.
    """
    for sign, name in ((1, "lambda_max"), (-1, "lambda_min")):
        if sign in forms:
            add_data(metrics, samples, name, groups.without_one(forms[sign]))
    add_to_radius(metrics, samples)


def add_to_radius(metrics: dict[str, schema.Metric], samples: dict[str, schema.Samples]) -> None:
    """Put the data's error of the end that is larger in size into the spectral radius, and into 2 / lambda_max.

    The latter to first order: without one group lambda_max may be next to nothing.
    """
    sizes = {}
    for name in ("lambda_max", "lambda_min"):
        value = metrics[name].value if name in metrics else None
        if value is not None:
            sizes[name] = abs(value)
    if len(sizes) == 2:
        larger = max(sizes, key=lambda name: sizes[name])
        if larger in samples and samples[larger].data:
            add_data(metrics, samples, "spectral_radius", np.abs(samples[larger].data))
    top = np.array(samples["lambda_max"].data) if "lambda_max" in samples else np.zeros(0)
    rate = metrics["max_stable_learning_rate"].value if "max_stable_learning_rate" in metrics else None
    if top.size and rate:
        add_data(metrics, samples, "max_stable_learning_rate", rate * (1 - (top - top.mean()) * rate / 2))


def add_to_moments(
    metrics: dict[str, schema.Metric],
    samples: dict[str, schema.Samples],
    groups: Groups | None,
    operator: ObservedOperator,
    *,
    seed: int,
    on_event: OnEvent,
) -> None:
    """Put the data's error into trace, mean eigenvalue and Frobenius norm, and the trace's spread over groups beside.

    Four vectors z of signs, eight products: H z, and H_g z over the groups. The trace of group g is the mean of
    z.H_g z. Of the norm the relative error is taken, from ||Hz||^2, Hz.H_g z and ||H_g z||^2 with the same z above and
    below, so that most of what z leaves of sampling error drops out. Holds 12 vectors, or 3 where 12 do not fit.
    """
    if groups is None:
        return
    space = groups.subject.risk.space
    on_event(Started("data error", None))
    whole, (forms, crosses, squares) = np.empty(PROBES), (np.empty((len(groups.terms), PROBES)) for _ in range(3))
    at_once = PROBES if vectors_fit(space, 3 * PROBES) else 1
    for first in range(0, PROBES, at_once):
        some = range(first, first + at_once)
        vectors = [space.random("rademacher", seed=seed, index=SEED_OFFSET + i) for i in some]
        images = operator.matvecs(vectors)
        whole[some] = [space.inner(w, w) for w in images]
        of_groups = []
        for products in groups.products(operator, vectors):
            found = zip(vectors, images, products, strict=True)
            of_groups.append([[space.inner(z, w), space.inner(image, w), space.inner(w, w)] for z, image, w in found])
            del found, products  # before the next group's are made
        forms[:, some], crosses[:, some], squares[:, some] = np.moveaxis(np.array(of_groups), 2, 0)
        del vectors, images
    on_event(Finished("data error"))
    traces = groups.without_one(forms.mean(axis=1))
    add_data(metrics, samples, "trace", traces)
    add_data(metrics, samples, "mean_eigenvalue", traces, scale=1.0 / space.dimension)
    norm = metrics.get("frobenius_norm")
    if norm is not None and norm.value and whole.any():
        left = squares_without_one(groups.share[:, None], whole, crosses, squares).sum(axis=1)
        add_data(metrics, samples, "frobenius_norm", np.sqrt(left / whole.sum()), scale=norm.value)
    metrics |= spread_over_groups(forms.mean(axis=1))


def squares_without_one(share: np.ndarray, whole: np.ndarray, crosses: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """||H z||^2 with a group left out, from ||Hz||^2, Hz.H_g z and ||H_g z||^2; `share` is t_g / T."""
    return np.asarray(np.maximum(whole - 2 * share * crosses + share**2 * squares, 0.0) / (1 - share) ** 2)


def spread_over_groups(traces: np.ndarray) -> dict[str, schema.Metric]:
    """The standard deviation of the groups' traces (groups,), and over the size of their mean."""
    n = {"batches": len(traces)}
    out = {"trace_batch_spread": _from_groups(deviation_estimate(traces), n)}
    if traces.mean() == 0:
        out["trace_batch_cv"] = schema.Metric(value=None, n=n, reason="the groups' mean trace is zero")
        return out
    out["trace_batch_cv"] = _from_groups(variation_estimate(traces), n)
    if out["trace_batch_cv"].ci is None:
        out["trace_batch_cv"].reason = "no upper bound: the groups' mean trace is not told apart from zero"
    return out


def _from_groups(found: Estimate, n: dict[str, int]) -> schema.Metric:
    errors = schema.Errors(data=found.stderr)
    return schema.Metric(value=found.value, stderr=found.stderr, ci=found.ci, level=LEVEL, errors=errors, n=n)


def say_not_measured(metrics: dict[str, schema.Metric], names: Sequence[str], why: str) -> None:
    """Write into each of these metrics that has no data error why it has none."""
    for name in names:
        metric = metrics.get(name)
        if metric is not None and metric.value is not None and metric.errors.data is None and metric.reason is None:
            metric.reason = f"data error not measured: {why}"
