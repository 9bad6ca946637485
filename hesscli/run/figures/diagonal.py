"""The sampled diagonal as a file, a mean for each tensor, and an honest word about single entries."""

import numpy as np
import torch
from scipy.special import stdtrit

from hesscli.distributed import ranks
from hesscli.events import Warned
from hesscli.linalg.estimators.diagonal import DiagonalSums
from hesscli.linalg.space import ParameterSpace, ParameterVector
from hesscli.linalg.statistics import LEVEL
from hesscli.probes.trace import Trace
from hesscli.report import schema
from hesscli.run.figures.metrics import sampled, scaled
from hesscli.run.storage.artifacts import VectorFile

FILE = "diagonal.safetensors"
_CHANCE = 1.0 - LEVEL


def diagonal_file(sums: DiagonalSums[ParameterVector]) -> tuple[VectorFile, float]:
    """The estimate and its standard error, entry by entry, and the share of entries told apart from zero.

    The error is infinite for a single probe, which cannot know it. Holds two vectors more.
    """
    values, errors, found = [], [], 0
    quantile = float(stdtrit(sums.count - 1, 0.5 + LEVEL / 2)) if sums.count > 1 else 0.0
    for known, mean, squares in zip(sums.known, sums.mean, sums.squares, strict=True):
        value = known + mean
        if sums.count > 1:
            error = (squares / (sums.count * (sums.count - 1))).sqrt()
            found += int((value.abs() > quantile * error).sum())
        else:
            error = torch.full_like(value, float("inf"))
        values.append(value)
        errors.append(error)
    metadata = {"what": "diagonal of the matrix and one standard error of each entry", "probes": str(sums.count)}
    share = float(ranks().sum(np.array([found]))[0]) / sums.space.dimension
    return VectorFile(FILE, {"": values, "standard_error": errors}, metadata), share


def resolved_metric(share: float, count: int) -> schema.Metric:
    """The share of entries whose own interval leaves out zero."""
    if count < 2:
        return schema.Metric(value=None, n={"probes": count}, reason="one probe has no error bar")
    words = f"entries whose {LEVEL:.0%} interval leaves out zero; {_CHANCE:.0%} do by chance"
    return schema.Metric(value=share, n={"probes": count}, reason=words)


def few_resolved(share: float) -> Warned | None:
    """The word that a reader of single entries needs; None where most of them are resolved."""
    if share > 0.5:
        return None
    told = max(0.0, (share - _CHANCE) / LEVEL)
    text = (
        f"about {100 * told:.2g} % of the diagonal's entries are told apart from zero: the others are noise of the "
        "size of their rows, so use sums and means of entries, or raise --probes a hundredfold"
    )
    return Warned("diagonal-noise", text)


def tensor_means(result: Trace[ParameterVector], space: ParameterSpace, *, precision: float) -> list[schema.Block]:
    """The mean diagonal entry of each parameter, with an interval."""
    return [
        schema.Block(
            name=name,
            num_parameters=numel,
            metrics={"mean_diagonal": scaled(sampled(estimate, precision=precision), 1.0 / numel)},
        )
        for name, numel, estimate in zip(space.names, space.numels, result.parts, strict=True)
    ]
